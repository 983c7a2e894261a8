"""The plan of a study: what is to be done, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nuclass.core.config import Study
from nuclass.core.needs import Needs, split_shares, study_needs
from nuclass.core.sizes import NOTHING, Estimate, total
from nuclass.plan.jobs import Job
from nuclass.plan.rates import Rate, Rates, origin, rate_of
from nuclass.plan.schedule import Limits, chain, run
from nuclass.plan.work import Work, megabytes, seconds, work_of

HOUR = 3600.0
START = "@start"
"""The row of rates that tells what Snakemake itself takes to start a job."""
AT_ONCE = (1, 2, 4, 16, 64)
_STAGES = (
    ("Data", ("fetch_bundle", "simulate_bundle", "import_patches", "align_slide", "check_alignment", "build_slide")),
    ("Labels and splits", ("check_panel", "label_cells", "split_cells", "draw_labels")),
    ("Context features", ("pretrain_context", "embed_context")),
    ("Trainings", ("train_local", "train_global", "train_gate")),
    ("Predictions", ("predict",)),
    ("Baselines", ("embed_baseline", "train_baseline_linear", "train_baseline_finetuned", "predict_baseline")),
)
VARIANTS, REST = "Ablations and audit", "Evaluation, figures, tables"
STAGES = (*(name for name, _ in _STAGES), VARIANTS, REST)


@dataclass(frozen=True)
class Cost:
    """What one job takes.

    Attributes
    ----------
    seconds
        Of the clock.
    memory
        10^6 bytes.
    """

    job: Job
    rate: Rate
    work: Work
    seconds: Estimate
    memory: Estimate

    @property
    def core_hours(self) -> Estimate:
        """Hours of the cores that the job holds, busy or not."""
        return self.seconds * (self.job.threads / HOUR)

    @property
    def gpu_hours(self) -> Estimate:
        """Hours of the GPUs that the job holds."""
        return self.seconds * (self.job.gpus / HOUR)


@dataclass(frozen=True)
class Stage:
    """A stage of the study: its jobs, and what those cost that are still to be run."""

    name: str
    jobs: int
    done: int
    costs: tuple[Cost, ...]

    @property
    def seconds(self) -> Estimate:
        """Seconds of all its jobs one after the other."""
        return total(cost.seconds for cost in self.costs)

    @property
    def core_hours(self) -> Estimate:
        """Hours of cores."""
        return total(cost.core_hours for cost in self.costs)

    @property
    def gpu_hours(self) -> Estimate:
        """Hours of GPUs."""
        return total(cost.gpu_hours for cost in self.costs)

    @property
    def largest(self) -> Cost | None:
        """The job that holds the most memory."""
        return max(self.costs, key=lambda cost: cost.memory.expected, default=None)


@dataclass(frozen=True)
class Plan:
    """What a study costs.

    Attributes
    ----------
    study, goals
        Its name, and what is asked for.
    stages
        Its stages; without those that have no job.
    chain
        Seconds of the longest chain of jobs that wait for each other: no number of machines makes it shorter.
    chain_jobs
        The jobs of that chain by the expected times.
    wall
        What is at once, in words -> seconds of the clock.
    memory
        What is at once, in words -> the most memory (10^6 bytes) at a time by the expected times.
    needs
        Downloads and disk.
    start_s
        Seconds that the start of a job takes beside the job, in ``chain`` and ``wall`` alone.
    """

    study: str
    goals: tuple[str, ...]
    stages: tuple[Stage, ...]
    chain: Estimate
    chain_jobs: tuple[Job, ...]
    wall: Mapping[str, Estimate]
    memory: Mapping[str, float]
    needs: Needs
    start_s: float

    @property
    def costs(self) -> list[Cost]:
        """All jobs that are still to be run."""
        return [cost for stage in self.stages for cost in stage.costs]

    @property
    def core_hours(self) -> Estimate:
        """Hours of cores."""
        return total(stage.core_hours for stage in self.stages)

    @property
    def gpu_hours(self) -> Estimate:
        """Hours of GPUs."""
        return total(stage.gpu_hours for stage in self.stages)

    def grades(self) -> dict[str, dict[str, float]]:
        """Return what the hours rest on: ``cores`` and ``gpus`` -> grade of the rate -> share of the expected hours."""
        found: dict[str, dict[str, float]] = {"cores": {}, "gpus": {}}
        for cost in self.costs:
            for name, hours in (("cores", cost.core_hours.expected), ("gpus", cost.gpu_hours.expected)):
                found[name][cost.rate.grade] = found[name].get(cost.rate.grade, 0.0) + hours
        return {
            name: {grade: hours / sum(parts.values()) for grade, hours in parts.items() if hours}
            for name, parts in found.items()
        }


def make_plan(
    study: Study,
    jobs: Sequence[Job],
    rates: Rates,
    root: str | Path = ".",
    goals: Sequence[str] = (),
    limits: Limits | None = None,
    start_s: float | None = None,
) -> Plan:
    """Return the plan of a study.

    Parameters
    ----------
    study
        The checked study.
    jobs
        Its jobs, of :func:`nuclass.plan.jobs.jobs_of`.
    rates
        What jobs take.
    root
        Its folder.
    goals
        What is asked for, to be told.
    limits
        What there is at once; without, several numbers of jobs at once are told.
    start_s
        Seconds that the start of a job takes; without, what the rates say of a single machine.
    """
    rules = {job.rule for job in jobs}
    needs = study_needs(study, root, rules, {job.rule for job in jobs if job.needed})
    downloads = downloads_of(needs)
    told = [with_networks(job, study) for job in jobs]
    costs = {job.number: _cost(job, needs, downloads, rates) for job in told if job.needed}
    start = rates[START, "cpu"].fixed_s if start_s is None and (START, "cpu") in rates else start_s or 0.0
    stages = _stages(told, costs)
    times = [_times(costs, which, start) for which in ("low", "expected", "high")]
    memory = {number: cost.memory.expected for number, cost in costs.items()}
    wall, most = {}, {}
    for name, limit in _limits(limits).items():
        courses = [run(told, each, limit, memory) for each in times]
        wall[name] = Estimate(*(course.seconds for course in courses))
        most[name] = courses[1].memory
    lengths = [chain(told, each) for each in times]
    return Plan(
        study.config["study"],
        tuple(goals) or ("all",),
        stages,
        Estimate(*(length for length, _ in lengths)),
        tuple(lengths[1][1]),
        wall,
        most,
        needs,
        start,
    )


def downloads_of(needs: Needs, whole: bool = False) -> dict[str, Estimate]:
    """Return the bytes by slide that are still to come, or (``whole``) that come in all."""
    found: dict[str, Estimate] = {}
    for file in needs.downloads:
        found[file.slide] = found.get(file.slide, NOTHING) + (file.size if whole else file.left)
    return found


def with_networks(job: Job, study: Study) -> Job:
    """Return a job that knows the networks it runs; trained models tell them in their checkpoints alone."""
    wanted = study.config["figures"]["gradcam"]
    shown = len(wanted["cells"]) or wanted["per_cohort"] * int((study.slides["role"] == "cohort").sum())
    models = study.short_models if job.rule.endswith("_variant") else study.models
    more = {
        "local_backbone": models["local"]["backbone"],
        "context_backbone": models["context"]["backbone"],
        "baselines": models.get("baselines") or {},
        "shares": split_shares(study.config),
        "shown": shown,
    }
    return replace(job, params={**more, **job.params})


def _cost(job: Job, needs: Needs, downloads: Mapping[str, Estimate], rates: Rates) -> Cost:
    rate = rate_of(rates, job.rule, job.gpus > 0)
    if not job.makes:
        # A goal's own entry runs nothing.
        return Cost(job, rate, Work(), NOTHING, NOTHING)
    work = work_of(job, needs.slides, downloads)
    return Cost(job, rate, work, seconds(rate, work, job.threads, job.gpus), megabytes(rate, work, job))


def _times(costs: Mapping[int, Cost], which: str, start: float) -> dict[int, float]:
    return {number: getattr(cost.seconds, which) + start * cost.job.makes for number, cost in costs.items()}


def _limits(limits: Limits | None) -> dict[str, Limits]:
    if limits is None:
        return {f"{count} at once": Limits(jobs=count) for count in AT_ONCE}
    words = {"jobs": limits.jobs, "cores": limits.cores, "GPUs": limits.gpus}
    named = {word[:-1] if number == 1 else word: number for word, number in words.items() if number is not None}
    name = ", ".join(f"{number} {word}" for word, number in named.items())
    return {name or "any number at once": limits}


def stage_of(rule: str) -> str:
    """Return the stage that a rule belongs to."""
    if rule.endswith("_variant"):
        return VARIANTS
    return next((name for name, rules in _STAGES if origin(rule) in rules), REST)


def _stages(jobs: Sequence[Job], costs: Mapping[int, Cost]) -> tuple[Stage, ...]:
    found = []
    for name in STAGES:
        own = [job for job in jobs if job.makes and stage_of(job.rule) == name]
        if own:
            needed = tuple(costs[job.number] for job in own if job.needed)
            found.append(Stage(name, len(own), len(own) - len(needed), needed))
    return tuple(found)
