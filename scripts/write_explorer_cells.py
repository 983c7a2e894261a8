"""Write the cells of a slide, their predictions and the pictures of activation maps for the explorer."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.explorer.cells import write_cells

    found = snakemake.input
    write_cells(
        snakemake.wildcards.slide,
        dict(zip(snakemake.params.models, found.tables, strict=True)),
        snakemake.output.cells,
        classes=found.classes,
        chosen=found.chosen,
        maps=found.maps,
        cells=found.all_cells,
    )
