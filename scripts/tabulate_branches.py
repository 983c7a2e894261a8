"""Lay out which branch is right where, and how well the gate tells."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.study import branches

    table = branches(snakemake.input.comparison)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic, flaws=snakemake.params.flaws)
