"""Collect time and memory of the study's jobs from their benchmark files."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_csv
    from nuclass.evaluation.usage import read_usage, summarise_usage

    told = snakemake.params
    usage = read_usage(told.folder, told.stages, told.jobs)
    write_csv(snakemake.output.jobs, usage)
    write_csv(snakemake.output.stages, summarise_usage(usage))
