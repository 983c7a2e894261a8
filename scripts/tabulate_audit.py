"""Lay out what each flaw of the original does to the numbers."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import audit
    from nuclass.tables.layout import noted, save_table
    from nuclass.tables.study import macro_note

    table = audit(snakemake.input.audit, short=snakemake.params.told["short"])
    made, told = snakemake.output, snakemake.params.told
    table = noted(table, macro_note(told["min_support"]))
    save_table(table, made.csv, made.md, made.tex, synthetic=told["synthetic"], flaws=told["flaws"])
