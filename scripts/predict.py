"""Predict the val and test cells of one slide with the local, the global and the fused model."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.predict import predict_slide

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    names = snakemake.params.names
    work = snakemake.params.get("work")
    predict_slide(
        snakemake.params.models,
        study,
        dict(zip(names, map(Path, snakemake.input.checkpoints), strict=True)),
        dict(zip(names, map(Path, snakemake.output.tables), strict=True)),
        Path(work) if work else None,
    )
