"""Lay out the verdicts on all slides as a table, and as one page with their pictures."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.alignment import alignment_page, alignment_table
    from nuclass.tables.layout import save_table

    found, made = snakemake.input, snakemake.output
    table = alignment_table(found.verdicts)
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
    alignment_page(
        found.verdicts,
        found.overlays,
        made.page,
        study=snakemake.params.study,
        synthetic=snakemake.params.synthetic,
    )
