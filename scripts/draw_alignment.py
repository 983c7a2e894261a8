"""Draw nuclei on the H&E of every slide, and how far they lie from where they should."""

from pathlib import Path

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.alignment import draw_alignment_of

    found = snakemake.input
    names = snakemake.params.slides
    columns = zip(names, found.alignments, found.stores, found.cells, found.bundles, strict=True)
    draw_alignment_of(
        {
            slide: {"alignment": alignment, "store": store, "cells": cells, "bundle": Path(bundle).parent}
            for slide, alignment, store, cells, bundle in columns
        },
        snakemake.output.pictures,
        snakemake.output.csv,
        style=snakemake.input.style,
        synthetic=snakemake.params.synthetic,
    )
