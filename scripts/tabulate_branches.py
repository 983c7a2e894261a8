"""Lay out which branch is right where, and how well the gate tells."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.study import branches

    branches(
        snakemake.input.comparison,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
        flaws=snakemake.params.flaws,
    )
