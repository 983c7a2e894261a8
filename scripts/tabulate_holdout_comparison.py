"""Lay out macro-F1, accuracy and log loss of every model and baseline on every cohort, and F1 by class."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.study import holdout_comparison

    table = holdout_comparison(
        snakemake.input.comparison,
        classes=snakemake.input.classes,
        closed_set=snakemake.params.closed_set,
        stand_ins=snakemake.params.stand_ins,
        min_support=snakemake.params.min_support,
    )
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic, flaws=snakemake.params.flaws)
