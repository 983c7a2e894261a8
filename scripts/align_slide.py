"""Find the map between one slide's H&E and its bundle: as given, bettered on the picture, or found on it."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.slides.job import align_slide

    align_slide(
        bundle=Path(snakemake.input.bundle).parent,
        transform=snakemake.output.transform,
        name=snakemake.wildcards.slide,
        align=snakemake.params.align,
        mpp=snakemake.params.mpp,
        robust=snakemake.params.robust,
    )
