"""Draw what the branches reach alone, averaged, fused and with a perfect choice."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.branches import draw_branches

    draw_branches(
        snakemake.input.json,
        snakemake.input.comparison,
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
