"""Put the page of the explorer together."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.explorer.page import write_page

    made = snakemake.output
    write_page(
        Path(snakemake.input.page).parent,
        made.index,
        made.assets,
        made.study,
        name=snakemake.params.study,
        slides=snakemake.params.slides,
        windows=snakemake.params.windows,
        mpp=snakemake.params.mpp,
        synthetic=snakemake.params.synthetic,
    )
