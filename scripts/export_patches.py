"""Write a slide's labelled cells as the three files of the original."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    import pandas as pd

    from nuclass.patches.export import export_patches
    from nuclass.slides.store import SlideStore

    with SlideStore(snakemake.input.store) as store:
        export_patches(
            store,
            pd.read_parquet(snakemake.input.cells),
            pd.read_parquet(snakemake.input.labels),
            Path(snakemake.output.annotations).parent,
            snakemake.params.windows,
            slide=snakemake.wildcards.slide,
            organ=snakemake.params.organ,
            patient=snakemake.params.patient,
            mpp=snakemake.params.mpp,
            replace=True,
            threads=snakemake.threads,
        )
