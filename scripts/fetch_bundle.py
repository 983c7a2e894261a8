"""Bring one slide's bundle, H&E image and alignment together: links to local files, or a download."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.xenium.fetch import dataset_row, fetch_local, fetch_remote, read_registry

    slide = snakemake.params.slide
    folder = Path(snakemake.output.bundle).parent
    if slide["source"] == "local":
        fetch_local(slide["bundle"], slide["he"], slide["alignment"], folder, slide["slide"])
    else:
        registry = snakemake.input.registry
        fetch_remote(dataset_row(read_registry(registry), slide["bundle"], registry), folder, slide["slide"])
