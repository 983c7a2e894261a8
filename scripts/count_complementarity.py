"""Count which branch is right on which cells, class by class, with significance."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.evaluation.compare import by_model
    from nuclass.evaluation.complementarity import complementarity_of_cohorts

    params = snakemake.params
    complementarity_of_cohorts(
        by_model(snakemake.input.tables, params.models),
        snakemake.output.csv,
        mpp=params.mpp,
        block_um=params.evaluation["block_um"],
        draws=params.evaluation["bootstrap"],
        seed=params.evaluation["seed"],
    )
