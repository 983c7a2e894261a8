"""Predict all slides with the models of one variant, which are loaded once."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.evaluation.compare import by_model
    from nuclass.training.predict import predict_models

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    names = snakemake.params.names
    predict_models(
        snakemake.params.models,
        study,
        dict(zip(names, map(Path, snakemake.input.checkpoints), strict=True)),
        by_model(snakemake.output.tables, names),
        Path(snakemake.params.work),
    )
