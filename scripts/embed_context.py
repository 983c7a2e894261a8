"""Run the frozen context network once over every labelled cell's neighbourhood and keep its features."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.data.study import Study
    from nuclass.training.context import embed_context

    study = Study(snakemake.params.slides, Path("results"), **snakemake.params.scale)
    embed_context(
        snakemake.params.models,
        study,
        Path(snakemake.output.features),
        Path(snakemake.params.work),
        folder=Path(snakemake.input.backbone[0]).parent if snakemake.input.backbone else None,
        views_out=Path(snakemake.output.views) if snakemake.output.get("views") else None,
        seed=snakemake.params.seed,
    )
