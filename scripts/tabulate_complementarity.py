"""Lay out which branch is right on how many cells of each class."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import complementarity

    complementarity(
        snakemake.input.counts,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
        flaws=snakemake.params.flaws,
    )
