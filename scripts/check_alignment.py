"""Measure how the nuclei of one slide's bundle lie on its H&E, judge it, and draw what was measured."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.slides.job import check_slide

    check_slide(
        bundle=Path(snakemake.input.bundle).parent,
        transform=snakemake.input.transform,
        verdict=snakemake.output.verdict,
        overlay=snakemake.output.overlay,
        settings=snakemake.params.alignment,
    )
