"""Lay out the labelled cells by class, slide and split."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.study import dataset

    table = dataset(snakemake.input.composition, classes=snakemake.input.classes)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
