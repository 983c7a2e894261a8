"""Describe the gate by class, by who is right, by the local model's uncertainty, and by place."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.readings import GATE_PARTS
    from nuclass.evaluation.compare import by_model
    from nuclass.evaluation.gate_behaviour import describe_gate_of_cohorts

    describe_gate_of_cohorts(
        by_model(snakemake.input.tables, snakemake.params.models),
        {part: snakemake.output[part] for part in GATE_PARTS},
        snakemake.output.summary,
        mpp=snakemake.params.mpp,
        square_um=snakemake.params.square_um,
    )
