"""Lay out how many cells got a label, how sure it is and, on a synthetic study, how right."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.study import label_quality

    label_quality(
        snakemake.input.quality,
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
        truth=snakemake.input.truth[0] if snakemake.input.truth else None,
    )
