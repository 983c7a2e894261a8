"""Lay out the published numbers beside those of this study."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.published import paper_comparison

    paper_comparison(
        snakemake.input.values,
        snakemake.input.comparison,
        snakemake.input.composition,
        snakemake.output.csv,
        snakemake.output.md,
        facts=snakemake.params.facts,
        synthetic=snakemake.params.synthetic,
        closed_set=snakemake.params.closed_set,
        flaws=snakemake.params.flaws,
    )
