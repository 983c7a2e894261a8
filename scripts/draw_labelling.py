"""Draw how the cells of all slides were labelled, one row a slide."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.labelling_study import draw_labelling
    from nuclass.labels.ontology import load_ontology

    found, told = snakemake.input, snakemake.params
    files = zip(told.slides, found.labels, found.cells, found.umaps, strict=True)
    draw_labelling(
        {slide: {"labels": labels, "cells": cells, "umap": umap} for slide, labels, cells, umap in files},
        snakemake.output.pictures,
        snakemake.output.csv,
        organs=told.organs,
        min_confidence=told.min_confidence,
        class_of={name: kind.class_name for name, kind in load_ontology(found.ontology).cell_types.items()},
        classes=found.classes,
        style=found.style,
        synthetic=told.synthetic,
    )
