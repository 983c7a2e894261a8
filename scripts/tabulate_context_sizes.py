"""Lay out the global and the fused model with global windows of several sizes."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import runs_table

    runs_table(
        snakemake.input.csv,
        snakemake.output.csv,
        snakemake.output.md,
        title="Sizes of the global window",
        first="side of the window, px",
        models=["global", "fused"],
        **snakemake.params.told,
    )
