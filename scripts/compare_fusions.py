"""Compare the gate with other ways to fuse the branches, which are fitted to val cells of the training slides."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.evaluation.compare import by_model, comparison_options
    from nuclass.evaluation.gate_ablation import compare_fusions_of_cohorts

    params = snakemake.params
    compare_fusions_of_cohorts(
        by_model(snakemake.input.tables, params.models),
        by_model(snakemake.input.training, params.models),
        snakemake.output.json,
        snakemake.output.csv,
        mpp=params.mpp,
        policy_on_test=params.policy_on_test,
        **comparison_options(params.evaluation, closed_set=params.closed_set),
    )
