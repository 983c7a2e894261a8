"""Lay out all settings, beside those of the real study's models."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.models_file import read_complete
    from nuclass.tables.hyperparameters import hyperparameters
    from nuclass.tables.layout import save_table

    told, made = snakemake.params, snakemake.output
    paper = snakemake.input.paper[0]
    table = hyperparameters(
        told.study,
        told.models,
        read_complete(paper, snakemake.input.schema),
        snakemake.input.words,
        file=told.file,
        paper_file="config/models/paper.yaml",
    )
    save_table(table, made.csv, made.md, made.tex, synthetic=told.synthetic)
