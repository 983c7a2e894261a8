"""Lay out the labelled cells by class, slide and split."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.study import dataset

    dataset(
        snakemake.input.composition,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
    )
