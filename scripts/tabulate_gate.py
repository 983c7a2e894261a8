"""Lay out where the gate opens and how well it tells."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import gate

    gate(
        snakemake.input.summary,
        snakemake.input.by_truth,
        snakemake.input.by_class,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
        flaws=snakemake.params.flaws,
    )
