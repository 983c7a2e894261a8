"""Simulate one slide: tissue, then its Xenium bundle and H&E image, with the truth kept apart."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.synthetic import simulate_slide

    slide = snakemake.params.slide
    simulate_slide(
        slide=slide["slide"],
        organ=slide["organ"],
        role=slide["role"],
        seed=int(snakemake.params.seed),
        bundle_folder=Path(snakemake.output.bundle).parent,
        truth_folder=Path(snakemake.output.truth).parent,
    )
