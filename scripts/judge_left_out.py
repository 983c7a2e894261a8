"""Judge local models that never saw an organ on the cells of that organ."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from nuclass.core.files import write_json
    from nuclass.evaluation.ablation import Options, Run, judge_left_out

    runs = [Run(**run) for run in snakemake.params.runs]
    result = judge_left_out(runs, snakemake.wildcards.organ, Options(**snakemake.params.options))
    write_json(snakemake.output.json, result)
