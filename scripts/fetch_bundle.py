"""Bring one slide's bundle, H&E image and alignment together: links to local files, or a download."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.xenium.fetch import fetch_slide
    from nuclass.xenium.registry import read_registry
    from nuclass.xenium.remote import HttpSettings

    slide = snakemake.params.slide
    # Not among the params: another user agent or time limit is no reason to fetch again.
    how = snakemake.config["fetch"]
    fetch_slide(
        slide,
        Path(snakemake.output.bundle).parent,
        read_registry(snakemake.input.registry) if slide["source"] == "dataset" else None,
        image=snakemake.params.image,
        align=slide["align"],
        settings=HttpSettings.from_config(how),
        offline=how["offline"],
    )
