"""Fine-tune a network with a linear layer, by the trainer of the local model."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.baselines import train_finetuned

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    train_finetuned(
        snakemake.params.models,
        snakemake.params.name,
        study,
        Path(snakemake.output.checkpoint).parent,
        Path(snakemake.params.work),
    )
