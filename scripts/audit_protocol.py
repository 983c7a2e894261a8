"""Measure what each flaw of the original does to the numbers, with seeds as the yardstick."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    import pandas as pd

    from nuclass.core.files import read_json, write_csv
    from nuclass.evaluation.ablation import Options, Run
    from nuclass.evaluation.audit import audit, policy_optimism

    reference, *runs = (Run(**run) for run in snakemake.params.runs)
    table = audit(
        runs,
        reference,
        pd.read_csv(snakemake.input.seeds),
        Options(**snakemake.params.options),
        idle=snakemake.params.idle,
        policy=policy_optimism(read_json(snakemake.input.policy[0])) if snakemake.input.policy else None,
        selecting=read_json(reference.gate_metrics)["n_select"],
    )
    write_csv(snakemake.output.csv, table)
