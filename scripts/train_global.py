"""Train the global model: the local window and the features of the neighbourhood to a class."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.train import train_global

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    train_global(
        snakemake.params.models,
        study,
        Path(snakemake.input.local),
        Path(snakemake.output.checkpoint).parent,
        Path(snakemake.params.work),
        snakemake.params.seed,
        Path(snakemake.input.backbone[0]).parent if snakemake.input.backbone else None,
    )
