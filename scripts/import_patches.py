"""Take in a slide that comes as three files of windows: its cells, its labels, and where each window lies."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.labels.named import label_named_cells
    from nuclass.patches.importing import import_patches

    import_patches(
        folder=snakemake.params.folder,
        cells=snakemake.output.cells,
        manifest=snakemake.output.manifest,
        windows=snakemake.params.windows,
        mpp=snakemake.params.mpp,
        slide=snakemake.wildcards.slide,
    )
    label_named_cells(
        cells=snakemake.output.cells,
        ontology=snakemake.input.ontology,
        out=Path(snakemake.output.labels).parent,
        name=snakemake.wildcards.slide,
    )
