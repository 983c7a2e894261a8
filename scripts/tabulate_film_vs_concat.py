"""Lay out the metrics of local models that use the organ by FiLM, by concatenation and not at all."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.class_names import ORGAN_USES
    from nuclass.tables.fusion import film_vs_concat
    from nuclass.tables.layout import save_table

    table = film_vs_concat(snakemake.input.json, titles=ORGAN_USES, short=snakemake.params.told["short"] or "")
    made, told = snakemake.output, snakemake.params.told
    save_table(table, made.csv, made.md, made.tex, synthetic=told["synthetic"], flaws=told["flaws"])
