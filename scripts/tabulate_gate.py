"""Lay out where the gate opens and how well it tells."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import gate
    from nuclass.tables.layout import save_table

    table = gate(snakemake.input.summary, snakemake.input.by_truth, snakemake.input.by_class)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic, flaws=snakemake.params.flaws)
