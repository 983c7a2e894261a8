"""All jobs of goals with what they ask of a cluster, as JSON: ``laid_out_jobs.py CONFIGFILE ATTEMPTS GOAL...``.

A process of its own, for the workflow changes settings of the process that parses it.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any


def laid_out(folder: Path, configfile: str, *goals: str, attempts: int = 1) -> list[dict[str, Any]]:
    """Return the jobs: ``rule wildcards threads group local before``, and for each attempt ``resources``."""
    command = [sys.executable, __file__, configfile, str(attempts), *goals]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return jobs


def main(configfile: str, attempts: str, *goals: str) -> None:
    from snakemake.api import SnakemakeApi
    from snakemake.settings import types

    logging.disable(logging.ERROR)
    with SnakemakeApi(types.OutputSettings(dryrun=True, quiet={types.Quietness.ALL})) as snakemake:
        workflow = snakemake.workflow(
            resource_settings=types.ResourceSettings(cores=1_000_000),
            config_settings=types.ConfigSettings(configfiles=[Path(configfile)]),
            snakefile=Path("workflow/Snakefile"),
        )
        dag = workflow.dag(dag_settings=types.DAGSettings(targets=set(goals)))
        dag.execute_workflow(executor="dryrun", execution_settings=types.ExecutionSettings(lock=False))
        graph = workflow._workflow.dag
        jobs = list(graph.jobs)
        numbers = {job: number for number, job in enumerate(jobs)}
        told = []
        for job in jobs:
            asked = []
            for attempt in range(1, int(attempts) + 1):
                job.attempt = attempt
                asked.append({name: value for name, value in job.resources.items() if isinstance(value, int | str)})
            told.append(
                {
                    "rule": job.rule.name,
                    "wildcards": dict(job.wildcards_dict),
                    "threads": int(job.threads),
                    "group": job.group,
                    "local": job.rule.name in workflow._workflow._localrules or not job.output,
                    "before": sorted(numbers[other] for other in graph.dependencies[job]),
                    "resources": asked,
                }
            )
    sys.stdout.write(json.dumps(told, default=str) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
