"""Lay out how far labels from markers agree with given ones, for the slides that have both."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.labelling import label_agreement

    columns = zip(snakemake.params.slides, snakemake.input.summaries, snakemake.input.scores, strict=True)
    label_agreement(
        {slide: {"summary": summary, "scores": scores} for slide, summary, scores in columns},
        snakemake.output.csv,
        snakemake.output.md,
        synthetic=snakemake.params.synthetic,
    )
