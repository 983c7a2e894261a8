"""Give every kept cell of one slide its cell type and class, or abstain."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.labels.job import Tables, label_slide

    label_slide(
        bundle=Path(snakemake.input.bundle).parent,
        cells=snakemake.input.cells,
        tables=Tables(snakemake.input.markers, snakemake.params.extra_markers or None, snakemake.input.ontology),
        organ=snakemake.params.organ,
        settings=snakemake.params.labels,
        source=snakemake.params.source,
        given=snakemake.params.given,
        name=snakemake.wildcards.slide,
        out=Path(snakemake.output.labels).parent,
    )
