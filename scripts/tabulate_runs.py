"""Lay out runs of the training that differ in one setting."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.tables.ablation import GUIDANCE, runs_table

    kinds = {
        "uncertainty_guidance": {
            "title": "With and without uncertainty guidance",
            "first": "weight of a cell in the guided loss",
            "models": ["global", "fused"],
            "values": GUIDANCE,
        },
        "context_sizes": {
            "title": "Sizes of the global window",
            "first": "side of the window, px",
            "models": ["global", "fused"],
        },
    }
    kind = kinds[snakemake.wildcards.table]
    runs_table(snakemake.input.csv, snakemake.output.csv, snakemake.output.md, **kind, **snakemake.params.told)
