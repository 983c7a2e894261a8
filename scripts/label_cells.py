"""Give every kept cell of one slide its class from the transcripts, or abstain."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.labels.job import label_slide

    label_slide(
        bundle=Path(snakemake.input.bundle).parent,
        cells=snakemake.input.cells,
        markers=snakemake.input.markers,
        ontology=snakemake.input.ontology,
        organ=snakemake.params.organ,
        settings=snakemake.params.labels,
        labels=snakemake.output.labels,
        evidence=snakemake.output.evidence,
        summary=snakemake.output.summary,
    )
