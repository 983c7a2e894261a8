"""Compare the branches, their plain mean, the fused model and the oracle on each cohort and on all pooled."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.evaluation.compare import by_model, compare_cohorts

    settings = snakemake.params.evaluation
    compare_cohorts(
        by_model(snakemake.input.tables, snakemake.params.models),
        snakemake.output.json,
        snakemake.output.csv,
        mpp=snakemake.params.mpp,
        block_um=settings["block_um"],
        draws=settings["bootstrap"],
        seed=settings["seed"],
        min_support=settings["min_support"],
    )
