"""Draw the pages of FiLM against concatenation."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.film_vs_concat import draw_film_vs_concat

    found = snakemake.input
    draw_film_vs_concat(
        found.json,
        {part: found[part] for part in ("cells", "organs", "confusion", "reliability")},
        snakemake.output.pictures,
        snakemake.output.csv,
        classes=found.classes,
        style=found.style,
        synthetic=snakemake.params.synthetic,
    )
