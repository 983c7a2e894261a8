"""Score labels, models and geometry of a synthetic study against its truth, which nothing else reads."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_csv, write_json
    from nuclass.evaluation.compare import by_model
    from nuclass.evaluation.truth import score_study

    slides = snakemake.params.slides
    scores = score_study(
        labels=dict(zip(slides, snakemake.input.labels, strict=True)),
        predictions=by_model(snakemake.input.tables, snakemake.params.models),
        cells=dict(zip(slides, snakemake.input.cells, strict=True)),
        alignments=dict(zip(slides, snakemake.input.alignments, strict=True)),
        truth_folder=Path(snakemake.input.truth[0]).parents[1],
        mpp=snakemake.params.mpp,
        window=snakemake.params.window,
        evaluation=snakemake.params.evaluation,
    )
    for path in map(Path, snakemake.output):
        if path.suffix == ".csv":
            write_csv(path, scores["criteria"])
        else:
            write_json(path, scores[path.stem])
