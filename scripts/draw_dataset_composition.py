"""Draw what the study is made of: organs, classes and slides."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.dataset_composition import draw_dataset_composition

    draw_dataset_composition(
        snakemake.input.counts,
        snakemake.output.pictures,
        snakemake.output.csv,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
