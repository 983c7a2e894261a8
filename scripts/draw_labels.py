"""Draw how the cells of one slide were labelled, on one page."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.labelling import draw_slide_labels
    from nuclass.labels.ontology import load_ontology

    found, told = snakemake.input, snakemake.params
    draw_slide_labels(
        snakemake.wildcards.slide,
        {"labels": found.labels, "cells": found.cells, "umap": found.umap, "markers": found.markers},
        snakemake.output.pictures,
        snakemake.output.csv,
        organ=told.organ,
        min_confidence=told.min_confidence,
        class_of={name: kind.class_name for name, kind in load_ontology(found.ontology).cell_types.items()},
        classes=found.classes,
        style=found.style,
        synthetic=told.synthetic,
    )
