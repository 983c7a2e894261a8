"""Lay out the global and the fused model with global windows of several sizes."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import runs_table
    from nuclass.tables.layout import noted, save_table
    from nuclass.tables.study import macro_note

    table = runs_table(
        snakemake.input.csv,
        title="Sizes of the global window",
        first="side of the window, px",
        models=["global", "fused"],
        short=snakemake.params.told["short"],
    )
    made, told = snakemake.output, snakemake.params.told
    table = noted(table, macro_note(told["min_support"]))
    save_table(table, made.csv, made.md, made.tex, synthetic=told["synthetic"], flaws=told["flaws"])
