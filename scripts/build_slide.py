"""Bring one slide's H&E to the study's scale and place its cells on it, unless its alignment failed."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.slides.job import build_slide, refuse_failed

    verdict = Path(snakemake.input.verdict)
    refuse_failed(verdict, snakemake.config["alignment"]["accept"], verdict.with_suffix(".png"))
    build_slide(
        bundle=Path(snakemake.input.bundle).parent,
        transform=snakemake.input.transform,
        store=snakemake.output.store,
        cells=snakemake.output.cells,
        checks=snakemake.output.checks,
        mpp=snakemake.params.mpp,
        window=snakemake.params.window,
        qc=snakemake.params.qc,
        tiles=snakemake.params.store,
        name=snakemake.wildcards.slide,
        threads=snakemake.threads,
        inverted_mpp=snakemake.params.inverted_mpp,
    )
