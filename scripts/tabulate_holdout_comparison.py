"""Lay out macro-F1, accuracy and log loss of every model on every cohort."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.study import holdout_comparison

    holdout_comparison(
        snakemake.input.comparison,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
        flaws=snakemake.params.flaws,
    )
