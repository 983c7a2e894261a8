"""Lay out the metrics of local models that use the organ by FiLM, by concatenation and not at all."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import film_vs_concat
    from nuclass.tables.layout import save_table

    titles = {"film": "FiLM", "concat": "Concatenation", "none": "None"}
    table = film_vs_concat(snakemake.input.json, titles=titles)
    made, told = snakemake.output, snakemake.params.told
    save_table(table, made.csv, made.md, made.tex, synthetic=told["synthetic"], flaws=told["flaws"])
