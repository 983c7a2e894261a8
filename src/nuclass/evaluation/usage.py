"""What the jobs of a study took: time and memory, from the benchmark file that Snakemake leaves for each job."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nuclass.core.log import get_logger

JOB_COLUMNS = ("stage", "rule", "job", "seconds", "cpu_seconds", "peak_mib")
STAGE_COLUMNS = (
    *("stage", "jobs", "seconds", "longest_seconds", "longest_job"),
    *("sampled", "cpu_seconds", "cores", "peak_mib", "peak_job", "missing"),
)
TOTAL = "total"
_MEASURES = {"seconds": "s", "cpu_seconds": "cpu_time", "peak_mib": "max_rss"}
_ABSENT = ("NA", "-", "")
_log = get_logger(__name__)


def read_benchmark(path: str | Path) -> dict[str, float] | None:
    """Return what one benchmark file says, or None where it cannot be read as one.

    Snakemake writes ``NA`` or ``-`` for a job that ended before its first sample: these are NaN. A rule that is
    repeated has a row a repeat; their times are summed.

    Returns
    -------
    ``seconds`` of wall time, ``cpu_seconds`` (user and system, of the job and its children) and ``peak_mib``, the
    largest resident memory sampled, of 2^20 bytes.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        found = {name: [_number(row[column]) for row in rows] for name, column in _MEASURES.items()}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, csv.Error) as error:
        _log.warning("%s is no benchmark file and is left out (%s)", path, error)
        return None
    if not rows or any(value != value for value in found["seconds"]):
        _log.warning("%s holds no time and is left out", path)
        return None
    frame = pd.DataFrame(found)
    return {
        "seconds": float(frame["seconds"].sum()),
        "cpu_seconds": float(frame["cpu_seconds"].sum(min_count=1)),
        "peak_mib": float(frame["peak_mib"].max()),
    }


def _number(text: str) -> float:
    return float("nan") if text in _ABSENT else float(text)


def read_usage(folder: str | Path, stages: Mapping[str, Sequence[str]], jobs: Sequence[str]) -> pd.DataFrame:
    """Return one row a job that left a benchmark file, in the order of ``stages``.

    Files of other rules or other jobs, such as those of slides no longer in the sheet, do not count.

    Parameters
    ----------
    folder
        Of the benchmark files, ``{rule}/{job}.tsv``.
    stages
        Stage -> its rules.
    jobs
        Names a job may have: slides, and ``all``.

    Returns
    -------
    ``stage rule job``, ``seconds cpu_seconds peak_mib`` as of :func:`read_benchmark`. A rule without any file has
    one row with an empty job and no numbers.
    """
    records: list[dict[str, object]] = []
    for stage, rules in stages.items():
        for rule in rules:
            paths = [Path(folder) / rule / f"{job}.tsv" for job in dict.fromkeys(jobs)]
            found = {path.stem: read_benchmark(path) for path in paths if path.is_file()}
            kept = [{"job": job, **numbers} for job, numbers in found.items() if numbers is not None]
            if not kept:
                _log.warning("no job of the rule %s left a benchmark file below %s", rule, folder)
            records += [{"stage": stage, "rule": rule, **row} for row in kept or [{"job": ""}]]
    frame = pd.DataFrame(records, columns=list(JOB_COLUMNS))
    return frame.astype(dict.fromkeys(_MEASURES, float))


def summarise_usage(usage: pd.DataFrame) -> pd.DataFrame:
    """Return one row a stage, and the total in the last.

    Jobs may have run side by side, so the sum of ``seconds`` is not how long one waited.

    Parameters
    ----------
    usage
        From :func:`read_usage`.

    Returns
    -------
    ``stage jobs``; ``seconds`` (wall time, summed over jobs), ``longest_seconds`` and ``longest_job`` (``rule/job``);
    ``sampled`` (jobs that ran long enough for a sample of CPU and memory), over these ``cpu_seconds``, ``cores``
    (CPU time a second of wall time), ``peak_mib`` and ``peak_job``; ``missing``, the rules without a benchmark file,
    separated by a semicolon.
    """
    rows = [_summary(stage, part) for stage, part in usage.groupby("stage", sort=False)]
    return pd.DataFrame([*rows, _summary(TOTAL, usage)], columns=list(STAGE_COLUMNS))


def _summary(stage: object, part: pd.DataFrame) -> dict[str, object]:
    jobs = part[part["seconds"].notna()]
    sampled = jobs[jobs["cpu_seconds"].notna()]
    cpu, wall = sampled["cpu_seconds"].sum(min_count=1), sampled["seconds"].sum()
    return {
        "stage": stage,
        "jobs": len(jobs),
        "seconds": jobs["seconds"].sum(min_count=1),
        "longest_seconds": jobs["seconds"].max(),
        "longest_job": _largest(jobs, "seconds"),
        "sampled": len(sampled),
        "cpu_seconds": cpu,
        "cores": cpu / wall if wall > 0 else float("nan"),
        "peak_mib": sampled["peak_mib"].max(),
        "peak_job": _largest(sampled, "peak_mib"),
        "missing": "; ".join(part.loc[part["job"] == "", "rule"]),
    }


def _largest(jobs: pd.DataFrame, column: str) -> str:
    values = jobs[column].dropna()
    if values.empty:
        return ""
    row = jobs.loc[values.idxmax()]
    return f"{row['rule']}/{row['job']}"
