"""Lay out the published numbers beside those of this study."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.published import paper_comparison

    found, told = snakemake.input, snakemake.params
    table = paper_comparison(
        found.values,
        found.comparison,
        found.composition,
        facts=told.facts,
        synthetic=told.synthetic,
        closed_set=told.closed_set,
    )
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic, flaws=snakemake.params.flaws)
