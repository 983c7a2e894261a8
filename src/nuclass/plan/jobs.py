"""The jobs of a study, as Snakemake lays them out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.own_files import own_file

SNAKEFILE = Path("workflow/Snakefile")


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes
    ----------
    threads, gpus
        What it asks for; GPUs of all its nodes.
    mem_mb
        Memory that it asks for, MB; None where that is known only when its inputs are there.
    needed
        Whether it is still to be run.
    outputs
        The files that it makes.
    benchmark, log
        The files that its time and its words are written to, empty without one.
    before
        Numbers of the jobs it waits for.
    params
        Parameters that tell how much it does.
    """

    number: int
    rule: str
    wildcards: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    gpus: int = 0
    mem_mb: int | None = None
    needed: bool = True
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    makes: bool = True
    benchmark: str = ""
    log: str = ""
    before: Sequence[int] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Rule and wildcards, as people say it."""
        return " ".join([self.rule, *self.wildcards.values()])

    def slides(self, known: Sequence[str]) -> list[str]:
        """Return the slides that the job works on: of its wildcard, its parameters, else of its inputs' paths."""
        if self.wildcards.get("slide") in known:
            return [self.wildcards["slide"]]
        listed = self.params.get("slides")
        rows = listed if isinstance(listed, list) else []
        named = {str(row.get("slide", "")) if isinstance(row, Mapping) else str(row) for row in rows}
        if named & set(known):
            return [name for name in known if name in named]
        parts = {part for file in self.inputs for part in Path(file).parts}
        stems = {Path(file).name.split(".")[0] for file in self.inputs}
        return [name for name in known if name in parts or name in stems]


def jobs_of(
    goals: Sequence[str],
    configfiles: Sequence[str | Path] = (),
    root: str | Path = ".",
    python: str | None = None,
    snakefile: Path | None = None,
) -> list[Job]:
    """Return all jobs of the goals, done or not, by a dry run of Snakemake.

    Parameters
    ----------
    goals
        Names of goals, or files; none for the workflow's first goal, ``all``.
    configfiles
        Settings laid over config/config.yaml.
    root
        The folder of the study.
    python
        The interpreter that has Snakemake; this one by default.
    snakefile
        The workflow, which then takes nothing but ``configfiles`` for its settings; by default that of the study's
        folder, else of the repository, with its own settings below ``configfiles``.

    Raises
    ------
    UserError
        Snakemake is not installed or cannot be started, or cannot lay the jobs out; its own words are told.
    """
    if python is None and find_spec("snakemake") is None:
        raise UserError(
            "A plan needs Snakemake, which is not installed here",
            where=sys.executable,
            expected="the environment that runs the workflow; the other commands do without Snakemake",
            fix="python -m pip install 'nuclass[workflow]', or start nuclass in that environment",
        )
    request = {
        "snakefile": str((snakefile or own_file(SNAKEFILE, root)).resolve()),
        "whole": snakefile is not None,
        "configfiles": [str(Path(file).resolve()) for file in configfiles],
        "goals": list(goals) or ["all"],
    }
    with tempfile.TemporaryDirectory(prefix="nuclass_plan_") as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        library = str(Path(nuclass.__file__).parents[1])
        paths = os.pathsep.join([library, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [python or sys.executable, "-m", "nuclass.plan.asking", str(asked), str(answer)]
        environment = {**os.environ, "PYTHONPATH": paths}
        try:
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(
                "The process that asks Snakemake for the jobs cannot be started",
                where=f"{command[0]}, in {Path(root).resolve()}",
                found=str(error),
                expected="a folder, and a Python that has Snakemake and can be started from here",
                fix="start `nuclass plan` in the environment that runs the workflow, outside of any container",
            ) from error
        if done.returncode != 0 or not answer.is_file():
            raise _failure(done.stderr or done.stdout, request["goals"])
        return [Job(**row) for row in json.loads(answer.read_text(encoding="utf-8"))]


def _failure(said: str, goals: object) -> UserError:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return UserError(
        "Snakemake cannot lay out the jobs of the study",
        where=f"goals {', '.join(map(str, goals)) if isinstance(goals, list) else goals}",
        found="\n" + "\n".join(f"    {line}" for line in lines[-15:]),
        fix="mend what it says; `nuclass check` tells about the settings, `snakemake -n` shows the same jobs",
    )
