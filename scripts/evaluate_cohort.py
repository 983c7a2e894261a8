"""Evaluate the three models on one cohort, or on all pooled: metrics, per-class tables, confusion, arrays."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.evaluation.cohort import CONFUSION, evaluate_model
    from nuclass.figures.confusion import draw_one_confusion

    selection = snakemake.wildcards.selection
    for model, checkpoint in zip(snakemake.params.models, snakemake.input.checkpoints, strict=True):
        out = Path(snakemake.output.gates).parents[2] / model / selection
        evaluate_model(
            [path for path in snakemake.input.tables if Path(path).parent.name == model],
            out,
            model=model,
            cohort=selection,
            checkpoint=checkpoint,
            patients=snakemake.params.patients,
            bins=snakemake.params.bins,
            min_support=snakemake.params.min_support,
        )
        draw_one_confusion(
            out / CONFUSION,
            out / "confusion.png",
            model=model,
            cohort=selection,
            classes=snakemake.input.classes,
            style=snakemake.input.style,
        )
