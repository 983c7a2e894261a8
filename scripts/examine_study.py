"""Check whether the study will run on this machine, tell what was found, and fail where something stands in the way."""

from nuclass.core.jobs import snakemake_job

with snakemake_job(snakemake):
    from pathlib import Path

    from nuclass.core.errors import UserError
    from nuclass.core.files import write_json
    from nuclass.doctor import GROUPS, Case, as_json, examine, stage_of_job, study_name, tell

    params = snakemake.params
    case = Case(
        files=[Path(file) for file in params.files],
        settings=snakemake.config,
        environment=stage_of_job(params.environment),
        outer=params.outer,
    )
    results = examine(case)
    tell(results)
    write_json(snakemake.output.report, as_json(results, study_name(case)))
    faults = [f"{GROUPS[result.group]}: {result.name}" for result in results if result.verdict == "fail"]
    if faults:
        raise UserError(
            f"The doctor found {len(faults)} faults",
            found="; ".join(faults),
            fix="do what the report says below each FAIL (it stands above; again, and faster: nuclass doctor)",
        )
