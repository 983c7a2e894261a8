"""Draw which branch is right on which cells, class by class."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.complementarity import draw_complementarity

    draw_complementarity(
        snakemake.input.counts,
        snakemake.output.pictures,
        snakemake.output.csv,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
