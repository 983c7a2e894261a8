"""Lay out which classes the panel of each slide can and cannot tell apart."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.labelling import panel_classes

    told = snakemake.params
    panel_classes(
        dict(zip(told.slides, snakemake.input.panels, strict=True)),
        snakemake.output.csv,
        snakemake.output.md,
        organs=told.organs,
        synthetic=told.synthetic,
    )
