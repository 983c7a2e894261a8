"""Train the local model: the 224 px window around a cell and the organ's name to a class."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.train import train_local

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    train_local(
        snakemake.params.models,
        study,
        Path(snakemake.output.checkpoint).parent,
        Path(snakemake.params.work),
        snakemake.params.seed,
    )
