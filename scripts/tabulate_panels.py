"""Lay out which classes the panel of each slide can and cannot tell apart."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.labelling import panel_classes
    from nuclass.tables.layout import save_table

    told = snakemake.params
    table = panel_classes(dict(zip(told.slides, snakemake.input.panels, strict=True)), organs=told.organs)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
