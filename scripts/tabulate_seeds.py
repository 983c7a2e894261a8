"""Lay out how much the numbers change with the seed alone."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import seeds

    seeds(snakemake.input.spread, snakemake.output.csv, snakemake.output.md, **snakemake.params.told)
