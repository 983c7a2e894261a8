"""Draw the workflow and the three stages, with pictures of the study."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.figures.pipeline import draw_pipeline
    from nuclass.figures.pipeline_method import Method
    from nuclass.figures.pipeline_views import PATHS
    from nuclass.labels.ontology import load_ontology

    found, told = snakemake.input, snakemake.params
    kinds = load_ontology(found.ontology).cell_types
    draw_pipeline(
        told.shown["slide"],
        told.shown["organ"],
        {name: path for name, path in found.items() if name in PATHS},
        found.counts,
        snakemake.output.pictures,
        snakemake.output.csv,
        method=Method.of(told.models, **told.scale),
        class_of={name: kind.class_name for name, kind in kinds.items()},
        classes=found.classes,
        style=found.style,
        synthetic=told.synthetic,
    )
