"""Lay out how far labels from markers agree with given ones, for the slides that have both."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.labelling import label_agreement
    from nuclass.tables.layout import save_table

    found = snakemake.input
    columns = zip(snakemake.params.slides, found.summaries, found.scores, strict=True)
    files = {slide: {"summary": summary, "scores": scores} for slide, summary, scores in columns}
    table = label_agreement(files, classes=found.classes)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
