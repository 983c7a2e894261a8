"""Lay out how each slide is divided, and how far apart the windows of its splits lie."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.splits import splits_table

    splits_table(
        snakemake.input.reports,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
    )
