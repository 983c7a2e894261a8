"""Write the H&E of a slide as deep-zoom tiles for the explorer."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.explorer.tiles import write_tiles

    write_tiles(
        snakemake.wildcards.slide,
        snakemake.input.store,
        snakemake.output.tiles,
        quality=snakemake.params.quality,
        cache_mb=snakemake.params.cache_mb,
    )
