"""Draw what the study's jobs took."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.resources import draw_resources

    draw_resources(
        snakemake.input.jobs,
        snakemake.input.stages,
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
