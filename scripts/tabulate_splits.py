"""Lay out how each slide is divided, and how far apart the windows of its splits lie."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.splits import splits_table

    table = splits_table(snakemake.input.reports)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
