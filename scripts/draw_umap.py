"""Draw the maps of embeddings by class, organ, slide, right and wrong."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.embedding_map import draw_umap

    draw_umap(
        snakemake.input.map,
        snakemake.output.pictures,
        snakemake.output.csv,
        classes=snakemake.input.classes,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
