"""Lay out the metrics of local models that use the organ by FiLM, by concatenation and not at all."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.fusion import film_vs_concat

    titles = {"film": "FiLM", "concat": "Concatenation", "none": "None"}
    film_vs_concat(
        snakemake.input.json, snakemake.output.csv, snakemake.output.md, titles=titles, **snakemake.params.told
    )
