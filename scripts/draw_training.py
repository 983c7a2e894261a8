"""Draw how the models learned."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.training import draw_training

    draw_training(
        dict(zip(snakemake.params.trainings, snakemake.input.metrics, strict=True)),
        dict(zip(snakemake.params.models, snakemake.input.histories, strict=True)),
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
