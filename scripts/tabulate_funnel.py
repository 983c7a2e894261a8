"""Lay out the cells left after each step, and why the others went."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.study import funnel

    funnel(
        snakemake.input.counts,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
    )
