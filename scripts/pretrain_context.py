"""Train the demo's own context network to tell which classes lie where around a cell."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.composition import pretrain_context

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    pretrain_context(
        snakemake.params.models,
        study,
        Path(snakemake.output.metrics).parent,
        Path(snakemake.params.work),
        snakemake.params.seed,
    )
