"""Lay out how many cells got a label, how sure it is and, on a synthetic study, how right."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.layout import save_table
    from nuclass.tables.study import label_quality

    truth = snakemake.input.truth[0] if snakemake.input.truth else None
    table = label_quality(snakemake.input.quality, truth=truth)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
