"""Lay out what the synthetic study is expected to show, with value and verdict."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.study import synthetic_truth

    synthetic_truth(
        snakemake.input.criteria,
        snakemake.output.csv,
        snakemake.output.md,
        flaws=snakemake.params.flaws,
    )
