"""Compare every baseline with the branches and the fused model on the same cells of each cohort."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.evaluation.compare import by_model, check_models, compare_cohorts, comparison_options

    params = snakemake.params
    tables = by_model(snakemake.input.tables, params.models)
    checkpoints = dict(zip(params.models, snakemake.input.checkpoints, strict=True))
    check_models(tables, checkpoints, patients=params.patients, training=params.training)
    compare_cohorts(
        tables,
        snakemake.output.json,
        snakemake.output.csv,
        mpp=params.mpp,
        composition=snakemake.input.composition,
        out_organs=snakemake.output.organs,
        **comparison_options(params.evaluation, closed_set=params.closed_set),
    )
