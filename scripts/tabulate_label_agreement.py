"""Lay out how far labels from markers agree with given ones, for the slides that have both."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.labels.measures import agreement_of
    from nuclass.tables.labelling import label_agreement

    label_agreement(
        agreement_of(dict(zip(snakemake.params.slides, snakemake.input.agreements, strict=True))),
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
    )
