"""Ask Snakemake for the jobs of a study, in a process of its own: ``python -m nuclass.plan.asking REQUEST ANSWER``.

Finished is what profiles/default takes for it: the time of a script says nothing, its hash is a parameter of its rule.
Nor does the software of a run, for the plan does not know how the study will be started (``--sdm``).

The workflow changes settings of the process that parses it and may end it; the caller is spared both. It is a dry run:
nothing is made, no lock is taken, neither a network nor any input is needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PARAMETERS = ("models", "slides", "names", "name", "embedded", "align")
"""Parameters of rules that tell how much a job does."""
MANY_CORES = 1_000_000
"""So many that no job's threads are cut."""


def main(request: str, answer: str) -> int:
    """Write the jobs of a study as JSON; ``request`` is the file with ``snakefile configfiles goals``."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings import types

    triggers = {types.RerunTrigger.MTIME, types.RerunTrigger.PARAMS, types.RerunTrigger.INPUT}
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    quiet = {types.Quietness.RULES, types.Quietness.PROGRESS, types.Quietness.HOST, types.Quietness.REASON}
    with SnakemakeApi(types.OutputSettings(dryrun=True, quiet=quiet)) as snakemake:
        try:
            workflow = snakemake.workflow(
                resource_settings=types.ResourceSettings(cores=MANY_CORES),
                config_settings=types.ConfigSettings(
                    configfiles=[Path(file) for file in asked["configfiles"]],
                    replace_workflow_config=bool(asked.get("whole")),
                ),
                snakefile=Path(asked["snakefile"]),
            )
            dag = workflow.dag(dag_settings=types.DAGSettings(targets=set(asked["goals"]), rerun_triggers=triggers))
            dag.execute_workflow(executor="dryrun", execution_settings=types.ExecutionSettings(lock=False))
            graph = workflow._workflow.dag
            needed = set(graph.needrun_jobs(exclude_finished=False))
            jobs = list(graph.jobs)
        except Exception as error:  # noqa: BLE001
            snakemake.print_exception(error)
            return 1
        numbers = {job: number for number, job in enumerate(jobs)}
        told = [_told(job, numbers, graph.dependencies[job], job in needed) for job in jobs]
    Path(answer).write_text(json.dumps(told), encoding="utf-8")
    return 0


def _told(job: Any, numbers: Mapping[Any, int], before: Iterable[Any], needed: bool) -> dict[str, Any]:
    asked = {name: str(value) for name, value in job.resources.items()}
    return {
        "number": numbers[job],
        "rule": job.rule.name,
        "wildcards": {key: str(value) for key, value in job.wildcards_dict.items()},
        "threads": int(job.threads),
        "gpus": _number(asked.get("gpu")) * max(_number(asked.get("nodes")), 1),
        "mem_mb": _number(asked.get("mem_mb")) or None,
        "needed": needed,
        "inputs": [str(file) for file in job.input],
        "outputs": [str(file) for file in job.output],
        "makes": bool(job.output),
        "benchmark": str(job.benchmark or ""),
        "log": str(next(iter(job.log), "")),
        "before": sorted(numbers[other] for other in before),
        "params": {name: _plain(job.params.get(name)) for name in PARAMETERS if job.params.get(name) is not None},
    }


def _number(text: str | None) -> int:
    """Return a whole number; 0 for what is known only when inputs are there."""
    return int(text) if text and text.isdigit() else 0


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value if value is None or isinstance(value, str | int | float | bool) else str(value)
    return [_plain(part) for part in value]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
