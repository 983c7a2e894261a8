"""Lay out how far labels from markers agree with given ones, for the slides that have both."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.labelling import label_agreement
    from nuclass.tables.layout import save_table

    columns = zip(snakemake.params.slides, snakemake.input.summaries, snakemake.input.scores, strict=True)
    table = label_agreement({slide: {"summary": summary, "scores": scores} for slide, summary, scores in columns})
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
