"""Lay out which cells our confidence keeps beside those that the original's rule would."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.labels.measures import RELEASED_MIN, confidence_of
    from nuclass.labels.ontology import load_ontology
    from nuclass.tables.labelling import label_confidence
    from nuclass.tables.layout import save_table

    found, told = snakemake.input, snakemake.params
    rules = confidence_of(
        dict(zip(told.slides, found.labels, strict=True)),
        {name: kind.class_name for name, kind in load_ontology(found.ontology).cell_types.items()},
        dict(zip(told.slides, found.truths, strict=True)) if found.truths else {},
    )
    table = label_confidence(rules, min_confidence=told.min_confidence, released_min=RELEASED_MIN)
    made = snakemake.output
    save_table(table, made.csv, made.md, made.tex, synthetic=snakemake.params.synthetic)
