"""Draw F1 by class for local, global and fused, with intervals."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.per_class_f1 import draw_per_class_f1

    draw_per_class_f1(
        snakemake.input.comparison,
        snakemake.output.pictures,
        snakemake.output.csv,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
