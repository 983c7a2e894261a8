"""Lay out where the gate opens and how well it tells."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import gate
    from nuclass.tables.layout import save_table

    found = snakemake.input
    table = gate(found.summary, found.by_truth, found.by_class, classes=found.classes)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic, flaws=snakemake.params.flaws)
