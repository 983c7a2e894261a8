"""Bring one slide's H&E to the study's scale, place its cells on it, and measure how well they lie."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.slides.job import build_slide

    build_slide(
        bundle=Path(snakemake.input.bundle).parent,
        store=snakemake.output.store,
        cells=snakemake.output.cells,
        alignment=snakemake.output.alignment,
        overlay=snakemake.output.overlay,
        mpp=snakemake.params.mpp,
        window=snakemake.params.window,
        qc=snakemake.params.qc,
        tiles=snakemake.params.store,
        name=snakemake.wildcards.slide,
        threads=snakemake.threads,
    )
