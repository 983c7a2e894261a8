"""A plan in words and tables: for the terminal, as TSV and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nuclass.core.files import atomic_path
from nuclass.core.progress import readable_bytes
from nuclass.core.sizes import Estimate, total
from nuclass.plan.plan import VARIANTS, Cost, Plan, Stage
from nuclass.plan.rates import GRADES

HEAD = ("low", "expected", "high")
TSV = ("part", "item", "unit", *HEAD, "rests_on")
_NOTES = """\
low and high are what is thought possible, not bounds; sums take all parts at their low or high end together.
Core hours count the cores that jobs hold, busy or not. Waiting in a queue is not counted. 1 GB = 10^9 bytes."""


def as_text(plan: Plan) -> str:
    """Return a plan for people to read."""
    jobs, done = sum(stage.jobs for stage in plan.stages), sum(stage.done for stage in plan.stages)
    parts = [
        f"Plan of the study '{plan.study}', goals: {', '.join(plan.goals)}",
        f"{jobs} jobs, {done} of them done.",
        "",
        *_columns([_head("Jobs by stage", "jobs", "done", "time, one by one", "core h", "GPU h"), *_stage_rows(plan)]),
        "",
        *_columns([("Time on the clock", *HEAD), *_wall_rows(plan)]),
        f"  longest chain: {_chain(plan)}",
        *_dear_runs(plan),
        "",
        *_memory(plan),
        "",
        *_columns([("Disk", *HEAD, "here"), *_disk_rows(plan)]),
        "",
        *_download_lines(plan),
        "",
        *_rests_on(plan),
        "",
        _NOTES,
    ]
    return "\n".join(line.rstrip() for line in parts) + "\n"


def as_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Return a plan as rows of a table: ``part item unit low expected high rests_on``; the first is the head."""
    rows: list[tuple[str, ...]] = [TSV]

    def add(part: str, item: str, unit: str, value: Estimate | float, rests_on: str = "") -> None:
        size = value if isinstance(value, Estimate) else Estimate.exactly(value)
        rows.append((part, item, unit, *(f"{number:.6g}" for number in (size.low, size.expected, size.high)), rests_on))

    for stage in plan.stages:
        add("jobs", stage.name, "jobs", stage.jobs)
        add("done", stage.name, "jobs", stage.done)
        add("time", stage.name, "s", stage.seconds, _grades(stage.costs))
        add("cores", stage.name, "h", stage.core_hours, _grades(stage.costs))
        add("gpus", stage.name, "h", stage.gpu_hours, _grades(stage.costs))
    add("cores", "total", "h", plan.core_hours)
    add("gpus", "total", "h", plan.gpu_hours)
    add("clock", "longest chain", "s", plan.chain, _chain(plan))
    for name, seconds in plan.wall.items():
        add("clock", name, "s", seconds)
        add("memory", name, "MB", plan.memory[name])
    for stage in plan.stages:
        if stage.largest:
            add("memory", stage.largest.job.name, "MB", stage.largest.memory, stage.largest.rate.grade)
    for folder in plan.needs.folders:
        add("disk kept", folder.folder, "bytes", folder.kept)
        add("disk for a time", folder.folder, "bytes", folder.passing)
        add("disk here", folder.folder, "bytes", folder.here)
    add("disk", "kept", "bytes", plan.needs.kept)
    add("disk", "at peak", "bytes", plan.needs.peak)
    add("disk", "to be free", "bytes", plan.needs.to_free)
    for file in plan.needs.downloads:
        add("download", f"{file.slide} {file.file}", "bytes", file.left, file.rests_on)
    add("download", "total", "bytes", plan.needs.to_download)
    for name, size in plan.needs.weights.items():
        add("weights by hand", name, "bytes", size, "float32")
    for slide in plan.needs.slides.values():
        add("slide cells", slide.slide, "cells", slide.cells, slide.rests_on)
        add("slide px", slide.slide, "million px", slide.mpx, slide.rests_on)
    return rows


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data, with every job."""
    return {
        "study": plan.study,
        "goals": list(plan.goals),
        "columns": list(TSV),
        "rows": [list(row) for row in as_rows(plan)[1:]],
        "grades": plan.grades(),
        "jobs": [_job(cost) for cost in plan.costs if cost.job.makes],
    }


def _job(cost: Cost) -> dict[str, Any]:
    return {
        "job": cost.job.name,
        "rule": cost.job.rule,
        "threads": cost.job.threads,
        "gpus": cost.job.gpus,
        "seconds": [cost.seconds.low, cost.seconds.expected, cost.seconds.high],
        "memory_mb": cost.memory.expected,
        "epochs": None if cost.work.epochs is None else cost.work.epochs.expected,
        "gflop": cost.work.gflop.expected,
        "grade": cost.rate.grade,
        "source": cost.rate.source,
    }


def hours(value: float) -> str:
    """Return hours with two digits that count: ``0.012``, ``3.4``, ``1,200``."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def time(seconds: float) -> str:
    """Return a time as people say it: ``40 s``, ``12 min``, ``3.5 h``, ``4.2 days``."""
    for limit, length, unit in ((172_800, 86_400, "days"), (7_200, 3_600, "h"), (120, 60, "min")):
        if seconds >= limit:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _range(value: Estimate, told: Any) -> str:
    """Return ``expected (low to high)``; the number alone where it is known."""
    low, expected, high = told(value.low), told(value.expected), told(value.high)
    return expected if low == high else f"{expected} ({low} to {high})"


def _head(*names: str) -> tuple[str, ...]:
    return names


def _stage_rows(plan: Plan) -> Iterable[tuple[str, ...]]:
    for stage in plan.stages:
        yield (stage.name, str(stage.jobs), str(stage.done), *_hours(stage))
    seconds = total(stage.seconds for stage in plan.stages)
    yield (
        "total",
        str(sum(stage.jobs for stage in plan.stages)),
        str(sum(stage.done for stage in plan.stages)),
        _range(seconds, time),
        _range(plan.core_hours, hours),
        _range(plan.gpu_hours, hours),
    )


def _hours(stage: Stage) -> tuple[str, str, str]:
    return _range(stage.seconds, time), _range(stage.core_hours, hours), _range(stage.gpu_hours, hours)


def _wall_rows(plan: Plan) -> Iterable[tuple[str, ...]]:
    for name, value in plan.wall.items():
        yield (name, *(time(number) for number in (value.low, value.expected, value.high)))
    yield ("as many as can be", *(time(number) for number in (plan.chain.low, plan.chain.expected, plan.chain.high)))


def _chain(plan: Plan) -> str:
    names = [job.name for job in plan.chain_jobs if job.makes]
    return " > ".join(names) or "nothing is to be done"


def _dear_runs(plan: Plan) -> list[str]:
    """Return how to do without most of the GPU hours, where the ablations and the audit take them."""
    runs = sum(stage.gpu_hours.expected for stage in plan.stages if stage.name == VARIANTS)
    whole = plan.gpu_hours.expected
    if runs < 0.5 * whole or not whole:
        return []
    return [
        "",
        f"{runs / whole:.0%} of the GPU hours are of ablations and audit. The goal `core` does without them and",
        "without published networks; section `ablations` of the models' file makes runs shorter: docs/ablations.md.",
    ]


def _memory(plan: Plan) -> list[str]:
    costs = [cost for cost in plan.costs if cost.memory.expected]
    if not costs:
        return ["Memory: nothing is to be done"]
    largest = max(costs, key=lambda cost: cost.memory.expected)
    told = _range(largest.memory, lambda mb: readable_bytes(mb * 1e6))
    at_once = ", ".join(f"{name} {readable_bytes(mb * 1e6)}" for name, mb in plan.memory.items())
    return [
        f"Memory of the largest job: {told}, {largest.job.name} ({largest.rate.grade})",
        f"Memory of all jobs that run together, expected: {at_once}",
    ]


def _disk_rows(plan: Plan) -> Iterable[tuple[str, ...]]:
    for folder in plan.needs.folders:
        size = folder.kept + folder.passing
        note = folder.folder if not folder.passing.high else f"{folder.folder}, at peak"
        yield (note, *_bytes(size), readable_bytes(folder.here))
    here = readable_bytes(sum(folder.here for folder in plan.needs.folders))
    yield ("kept", *_bytes(plan.needs.kept), here)
    yield ("at peak", *_bytes(plan.needs.peak), here)
    yield ("to be free now", *_bytes(plan.needs.to_free), "")


def _bytes(value: Estimate) -> tuple[str, str, str]:
    return readable_bytes(value.low), readable_bytes(value.expected), readable_bytes(value.high)


def _download_lines(plan: Plan) -> list[str]:
    needs = plan.needs
    if not needs.downloads:
        lines = ["Downloads: none; no slide is a public dataset."]
    else:
        rows = [
            (slide, *_bytes(total(file.left for file in files)), readable_bytes(sum(file.here for file in files)))
            for slide in dict.fromkeys(file.slide for file in needs.downloads)
            if (files := [file for file in needs.downloads if file.slide == slide])
        ]
        here = readable_bytes(sum(file.here for file in needs.downloads))
        lines = _columns([("Downloads to come", *HEAD, "here"), *rows, ("total", *_bytes(needs.to_download), here)])
        lines.append("  high: servers that know no ranges send whole zips")
    if needs.weights:
        listed = ", ".join(f"{name} {readable_bytes(size)}" for name, size in needs.weights.items())
        lines.append(f"  weights, brought by hand (docs/backbones.md): {listed}")
    return lines


def _grades(costs: Sequence[Cost]) -> str:
    found: dict[str, float] = {}
    for cost in costs:
        found[cost.rate.grade] = found.get(cost.rate.grade, 0.0) + cost.seconds.expected
    whole = sum(found.values())
    shares = sorted(found.items(), key=lambda item: -item[1])
    return ", ".join(f"{share / whole:.0%} {grade}" for grade, share in shares) if whole else ""


def _rests_on(plan: Plan) -> list[str]:
    lines = ["What the numbers rest on"]
    for name, word in (("gpus", "GPU hours"), ("cores", "core hours")):
        shares = sorted(plan.grades()[name].items(), key=lambda item: -item[1])
        for grade, share in [item for item in shares if item[1] >= 0.005]:
            lines.append(f"  {word}: {share:.0%} {GRADES[grade]}")
    trained = [cost for cost in plan.costs if cost.work.epochs is not None]
    uncertain = [cost for cost in trained if cost.work.epochs and cost.work.epochs.low < cost.work.epochs.high]
    if uncertain:
        shown = {
            cost.job.rule: _range(cost.work.epochs, lambda n: f"{n:.0f}") for cost in uncertain if cost.work.epochs
        }
        told = "; ".join(f"{rule} {epochs}" for rule, epochs in shown.items())
        lines.append(f"  epochs, for early stopping ends a training where nothing tells beforehand: {told}")
    for slide in plan.needs.slides.values():
        cells = _range(slide.cells, lambda n: f"{n:,.0f}")
        px = _range(slide.mpx, lambda n: f"{n:,.0f}")
        mark = "" if slide.known else "  UNKNOWN, assumed:"
        lines.append(f"  {slide.slide}:{mark} {cells} cells, {px} million px; {slide.rests_on}")
    return lines


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows with their columns in line, the first to the left, the others to the right; the head comes first."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        first = row[0].ljust(widths[0])
        lines.append("  ".join([f"{first}  " if not number else f"  {first}", *others]))
    return lines


def write_rows(file: str | Path, rows: Sequence[Sequence[str]]) -> None:
    """Write rows as a table with tabs."""
    with atomic_path(file) as temporary:
        temporary.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
