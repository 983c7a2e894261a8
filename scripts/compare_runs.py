"""Compare runs of the training that differ in one setting, on the cohorts and on the val cells."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_csv
    from nuclass.evaluation.ablation import Options, Run, compare_runs, spread

    reference, *runs = (Run(**run) for run in snakemake.params.runs)
    table = compare_runs(runs, reference, Options(**snakemake.params.options), ranked=True)
    write_csv(snakemake.output.csv, table)
    write_csv(snakemake.output.spread, spread(table))
