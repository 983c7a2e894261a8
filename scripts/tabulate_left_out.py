"""Lay out models that never saw an organ on the cells of that organ."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import left_out

    left_out(snakemake.input.results, snakemake.output.csv, snakemake.output.md, **snakemake.params.told)
