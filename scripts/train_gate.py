"""Train the gate that weighs the local against the global model, cell by cell."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.gate import train_gate

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    train_gate(
        snakemake.params.models,
        study,
        Path(snakemake.input.local),
        Path(snakemake.input.wide),
        Path(snakemake.output.checkpoint).parent,
        Path(snakemake.params.work),
        snakemake.params.seed,
    )
