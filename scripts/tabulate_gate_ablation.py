"""Lay out the gate against other ways to fuse the branches."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import gate_ablation

    gate_ablation(
        snakemake.input.json,
        snakemake.input.comparison,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
        flaws=snakemake.params.flaws,
    )
