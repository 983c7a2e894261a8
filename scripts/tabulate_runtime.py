"""Lay out time and memory of each stage and training."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.runtime import runtime

    table = runtime(
        snakemake.input.stages,
        dict(zip(snakemake.params.trainings, snakemake.input.metrics, strict=True)),
        dict(zip(snakemake.params.models, snakemake.input.histories, strict=True)),
    )
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
