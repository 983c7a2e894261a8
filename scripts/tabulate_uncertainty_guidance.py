"""Lay out the global and the fused model with and without uncertainty guidance."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import GUIDANCE, runs_table

    runs_table(
        snakemake.input.csv,
        snakemake.output.csv,
        snakemake.output.md,
        title="With and without uncertainty guidance",
        first="weight of a cell in the guided loss",
        models=["global", "fused"],
        values=GUIDANCE,
        **snakemake.params.told,
    )
