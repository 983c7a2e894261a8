"""Rates from the finished jobs of a study, so that the next one is planned by the first one's measure."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from nuclass.core.config import Study
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.needs import study_needs
from nuclass.core.sizes import Estimate, SlideSize
from nuclass.plan.jobs import Job
from nuclass.plan.plan import downloads_of, with_networks
from nuclass.plan.rates import Rate, Rates, origin, rate_of, write_rates
from nuclass.plan.work import Work, seconds, work_of

SPREAD = 3.0
"""Slides must differ so much in size, and there be so many jobs, for their times to tell how a rule grows."""
MANY = 4
_MIB = 1.048576
_TRAININGS = ("train_local", "train_global", "train_gate", "train_baseline_finetuned")
# What logs say of a job that was stopped and went on, as nuclass.training and nuclass.data write it.
_TRAINED_ON = re.compile(r"going on from epoch|training was finished before")
_WENT_ON = re.compile(r"Going on from cell (?!0 of)|there from an earlier run")
_log = get_logger(__name__)


def learn(study: Study, jobs: Sequence[Job], rates: Rates, root: str | Path = ".") -> Rates:
    """Return rates by the benchmark files of finished jobs.

    A rule whose jobs differ much in size (a factor of three, four jobs or more) gets what fits them best: seconds that
    every job takes, and seconds by its work, both of 0 or above (non-negative least squares). Otherwise how a rule
    grows stays as it was, and all its seconds are multiplied by the median of measured by planned.

    Raises
    ------
    UserError
        No job of the study has left a benchmark file.
    """
    needs = study_needs(study, root)
    # What lies here already came by the network once.
    downloads = downloads_of(needs, whole=True)
    found: dict[tuple[str, str], list[tuple[Job, float, float]]] = {}
    for job in jobs:
        measured = measured_of(job, root)
        if measured is not None:
            key = origin(job.rule), "gpu" if job.gpus else "cpu"
            found.setdefault(key, []).append((job, *measured))
    if not found:
        raise UserError(
            "Nothing can be learned: no job that ran in one go has left a benchmark file",
            where=Path(root) / "benchmarks",
            expected="the benchmark files of a study that has run in this folder",
            fix="run the study first, or name its folder with --directory",
        )
    return {key: _learned(key, rows, study, rates, needs.slides, downloads) for key, rows in sorted(found.items())}


def measured_of(job: Job, root: str | Path = ".") -> tuple[float, float] | None:
    """Return seconds and memory that a finished job took; None where that is not known.

    A benchmark file has a job's last attempt alone. A training that was stopped in between is known by the seconds of
    its history, which are those of all attempts; another job whose log says that it went on teaches nothing.
    """
    measured = read_benchmark(Path(root) / job.benchmark) if job.benchmark else None
    if measured is None:
        return None
    try:
        said = (Path(root) / job.log).read_text(encoding="utf-8", errors="replace") if job.log else ""
    except OSError:
        said = ""
    taken = _of_history(job, root)
    if _WENT_ON.search(said) or (taken is None and _TRAINED_ON.search(said)):
        return None
    return max(measured[0], taken or 0.0), measured[1]


def _of_history(job: Job, root: str | Path) -> float | None:
    """Return the seconds of a training in all its attempts; None for other jobs."""
    if origin(job.rule) not in _TRAININGS:
        return None
    file = next((Path(root) / name for name in job.outputs if Path(name).name == "history.csv"), None)
    try:
        with (file or Path()).open(encoding="utf-8", newline="") as stream:
            return max(float(row["seconds"]) for row in csv.DictReader(stream))
    except (OSError, KeyError, ValueError, TypeError):
        return None


def read_benchmark(file: Path) -> tuple[float, float] | None:
    """Return seconds and memory (10^6 bytes, NaN where it was not sampled) of a benchmark file; None without one."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        times = [float(row["s"]) for row in rows]
        memory = [float(row["max_rss"]) for row in rows if row["max_rss"] not in ("NA", "-", "")]
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return (sum(times), max(memory, default=float("nan")) * _MIB) if times else None


def _learned(
    key: tuple[str, str],
    rows: Sequence[tuple[Job, float, float]],
    study: Study,
    rates: Rates,
    sizes: Mapping[str, SlideSize],
    downloads: Mapping[str, Estimate],
) -> Rate:
    old = rate_of(rates, key[0], key[1] == "gpu")
    works = [work_of(with_networks(job, study), sizes, downloads) for job, _, _ in rows]
    measured = [taken for _, taken, _ in rows]
    planned = [
        seconds(old, work, job.threads, job.gpus).expected for work, (job, _, _) in zip(works, rows, strict=True)
    ]
    memory = [mb for _, _, mb in rows if mb == mb]
    source = f"{len(rows)} finished job{'s' * (len(rows) > 1)} of the study '{study.config['study']}'"
    new = _fitted(old, works, measured, rows) or _scaled(old, median(np.divide(measured, planned).tolist()))
    mb = max(memory, default=old.mb)
    least = max(mb - old.mb_kcell * max(work.held_at_once for work in works), 0.5 * mb)
    return replace(new, rule=key[0], device=key[1], mb=float(least), grade="learned", source=source)


def _scaled(old: Rate, factor: float) -> Rate:
    grown = {name: getattr(old, name) * factor for name in ("fixed_s", "kcell_s", "mpx_s", "mb_s")}
    return replace(old, **grown, gflops=old.gflops / factor if factor else old.gflops)


def _fitted(
    old: Rate, works: Sequence[Work], measured: Sequence[float], rows: Sequence[tuple[Job, float, float]]
) -> Rate | None:
    """Return fixed and growing seconds that fit best; None where the jobs are too few or too alike to tell."""
    from scipy.optimize import nnls

    grown = np.array(
        [
            seconds(replace(old, fixed_s=0.0), work, job.threads, job.gpus).expected
            for work, (job, _, _) in zip(works, rows, strict=True)
        ]
    )
    if len(rows) < MANY or grown.min() <= 0 or grown.max() < SPREAD * grown.min():
        return None
    # Each job counts by its relative error, so that the largest does not decide alone.
    weights = 1.0 / np.maximum(measured, 1e-3)
    (fixed, factor), _ = nnls(np.column_stack([weights, grown * weights]), np.asarray(measured) * weights)
    if not factor:
        return replace(old, fixed_s=float(fixed), kcell_s=0.0, mpx_s=0.0, mb_s=0.0, gflops=0.0)
    return replace(_scaled(old, float(factor)), fixed_s=float(fixed))


def write_learned(file: str | Path, rates: Rates) -> None:
    """Write learned rates; they are read by ``nuclass plan --rates``."""
    write_rates(file, rates, "Written by nuclass plan --learn; the columns are explained in resources/rates.tsv.")
