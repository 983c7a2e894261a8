"""Draw the fused model's confusion matrix of every cohort."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.confusion import draw_confusion

    draw_confusion(
        dict(zip(snakemake.params.selections, snakemake.input.tables, strict=True)),
        snakemake.output.pictures,
        snakemake.output.csv,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
