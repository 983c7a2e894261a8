"""Evaluate the three models on one cohort, or on all pooled: metrics, per-class tables, confusion, arrays."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.evaluation.cohort import CONFUSION, Rules, evaluate_model
    from nuclass.evaluation.leak import check_same_study, read_seen
    from nuclass.figures.confusion import draw_one_confusion

    params, selection = snakemake.params, snakemake.wildcards.selection
    checkpoints = dict(zip(params.models, snakemake.input.checkpoints, strict=True))
    check_same_study({model: read_seen(checkpoint) for model, checkpoint in checkpoints.items()})
    for model, checkpoint in checkpoints.items():
        out = Path(snakemake.output.gates).parents[2] / model / selection
        evaluate_model(
            [path for path in snakemake.input.tables if Path(path).parent.name == model],
            out,
            model=model,
            cohort=selection,
            checkpoint=checkpoint,
            patients=params.patients,
            training=params.training,
            composition=snakemake.input.composition,
            mpp=params.mpp,
            rules=Rules.of(params.evaluation, closed_set=params.closed_set),
        )
        draw_one_confusion(
            out / CONFUSION,
            out / "confusion.png",
            model=model,
            cohort=selection,
            classes=snakemake.input.classes,
            style=snakemake.input.style,
        )
