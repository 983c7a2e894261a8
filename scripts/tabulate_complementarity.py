"""Lay out which branch is right on how many cells of each class."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import complementarity
    from nuclass.tables.layout import save_table

    table = complementarity(snakemake.input.counts, classes=snakemake.input.classes)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic, flaws=snakemake.params.flaws)
