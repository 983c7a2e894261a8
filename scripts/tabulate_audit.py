"""Lay out what each flaw of the original does to the numbers."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import audit

    audit(snakemake.input.audit, snakemake.output.csv, snakemake.output.md, **snakemake.params.told)
