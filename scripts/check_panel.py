"""Judge what the panel of one slide can tell apart."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.labels.panel_check import check_panel

    check_panel(
        bundle=Path(snakemake.input.bundle).parent,
        markers=snakemake.input.markers,
        extra_markers=next(iter(snakemake.input.own), None),
        ontology=snakemake.input.ontology,
        organ=snakemake.params.organ,
        leave_out=snakemake.params.leave_out,
        source=snakemake.params.source,
        out=snakemake.output.panel,
    )
