"""Lay out models that never saw an organ on the cells of that organ."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import left_out
    from nuclass.tables.layout import noted, save_table
    from nuclass.tables.study import macro_note

    table = left_out(snakemake.input.results, short=snakemake.params.told["short"])
    made, told = snakemake.output, snakemake.params.told
    table = noted(table, macro_note(told["min_support"]))
    save_table(table, made.csv, made.md, made.tex, synthetic=told["synthetic"], flaws=told["flaws"])
