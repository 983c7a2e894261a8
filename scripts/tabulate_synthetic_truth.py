"""Lay out what the synthetic study is expected to show, with value and verdict."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.study import synthetic_truth

    table = synthetic_truth(snakemake.input.criteria)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=True, flaws=snakemake.params.flaws)
