"""Lay out the gate against other ways to fuse the branches."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import gate_ablation
    from nuclass.tables.layout import save_table

    table = gate_ablation(snakemake.input.json, snakemake.input.comparison)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic, flaws=snakemake.params.flaws)
