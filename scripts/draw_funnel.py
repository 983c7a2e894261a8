"""Draw how many cells of each slide are left after each step."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.funnel import draw_funnel

    draw_funnel(
        snakemake.input.counts,
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
