"""Lay out which classes the panel of each slide can and cannot tell apart."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.labelling import panel_classes
    from nuclass.tables.layout import save_table

    found, told = snakemake.input, snakemake.params
    panels = dict(zip(told.slides, found.panels, strict=True))
    table = panel_classes(panels, organs=told.organs, classes=found.classes)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
