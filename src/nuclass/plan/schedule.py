"""How long the jobs take together: the longest chain of jobs that wait for each other, and so many at once."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nuclass.plan.jobs import Job


@dataclass(frozen=True)
class Limits:
    """What there is at once; None for any number.

    Attributes
    ----------
    jobs
        Jobs.
    cores
        Cores. A job that asks for more gets all of them, as Snakemake does it.
    gpus
        GPUs.
    """

    jobs: int | None = None
    cores: int | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class Course:
    """How a run goes.

    Attributes
    ----------
    seconds
        From the first start to the last end.
    memory
        The most memory that jobs hold at once, in the unit of the jobs' memory.
    """

    seconds: float
    memory: float


def waiting(jobs: Sequence[Job]) -> dict[int, list[int]]:
    """Return for each job that is needed the needed jobs that it waits for; finished jobs hold nothing up."""
    by_number = {job.number: job for job in jobs}
    found: dict[int, list[int]] = {}
    for job in jobs:
        if job.needed:
            found[job.number] = [number for number in job.before if by_number[number].needed]
    return found


def chain(jobs: Sequence[Job], times: Mapping[int, float]) -> tuple[float, list[Job]]:
    """Return the longest chain of jobs that wait for each other: its seconds, and the jobs in their order."""
    before, by_number = waiting(jobs), {job.number: job for job in jobs}
    ends: dict[int, float] = {}
    last: dict[int, int | None] = {}
    for number in _in_order(before):
        latest = max(before[number], key=lambda other: ends[other], default=None)
        last[number] = latest
        ends[number] = times[number] + (ends[latest] if latest is not None else 0.0)
    if not ends:
        return 0.0, []
    at: int | None = max(ends, key=lambda number: ends[number])
    length, path = ends[at] if at is not None else 0.0, []
    while at is not None:
        path.append(by_number[at])
        at = last[at]
    return length, path[::-1]


def run(
    jobs: Sequence[Job], times: Mapping[int, float], limits: Limits, memory: Mapping[int, float] | None = None
) -> Course:
    """Return how a run goes that starts, of the jobs that are ready and fit, the one with the longest way to go."""
    before, held = waiting(jobs), memory or {}
    after: dict[int, list[int]] = {number: [] for number in before}
    for number, others in before.items():
        for other in others:
            after[other].append(number)
    rest = _rest(before, after, times)
    sizes = {job.number: (_part(job.threads, limits.cores), _part(job.gpus, limits.gpus)) for job in jobs}
    left = {number: len(others) for number, others in before.items()}
    ready = [(-rest[number], number) for number, count in left.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    free = _Free(limits)
    now, most = 0.0, 0.0
    while ready or running:
        skipped = []
        while ready:
            entry = heapq.heappop(ready)
            if free.take(*sizes[entry[1]]):
                heapq.heappush(running, (now + times[entry[1]], entry[1]))
            else:
                skipped.append(entry)
        for entry in skipped:
            heapq.heappush(ready, entry)
        most = max(most, sum(held.get(number, 0.0) for _, number in running))
        now, done = heapq.heappop(running)
        free.give(*sizes[done])
        for number in after[done]:
            left[number] -= 1
            if not left[number]:
                heapq.heappush(ready, (-rest[number], number))
    return Course(now, most)


class _Free:
    """What is free at a time."""

    def __init__(self, limits: Limits) -> None:
        whole = (limits.jobs, limits.cores, limits.gpus)
        self.left = [float("inf") if size is None else float(max(size, 1)) for size in whole]

    def take(self, threads: int, gpus: int) -> bool:
        wanted = (1, threads, gpus)
        if any(want > have for want, have in zip(wanted, self.left, strict=True)):
            return False
        self.left = [have - want for want, have in zip(wanted, self.left, strict=True)]
        return True

    def give(self, threads: int, gpus: int) -> None:
        self.left = [have + part for part, have in zip((1, threads, gpus), self.left, strict=True)]


def _part(wanted: int, most: int | None) -> int:
    return wanted if most is None else min(wanted, max(most, 1))


def _in_order(before: Mapping[int, Sequence[int]]) -> list[int]:
    """Return the jobs so that each comes behind those it waits for."""
    left = {number: len(others) for number, others in before.items()}
    after: dict[int, list[int]] = {number: [] for number in before}
    for number, others in before.items():
        for other in others:
            after[other].append(number)
    order = [number for number, count in left.items() if not count]
    for number in order:
        for other in after[number]:
            left[other] -= 1
            if not left[other]:
                order.append(other)
    return order


def _rest(
    before: Mapping[int, Sequence[int]], after: Mapping[int, Sequence[int]], times: Mapping[int, float]
) -> dict[int, float]:
    """Return for each job the seconds from its start to the end of the longest chain behind it."""
    rest: dict[int, float] = {}
    for number in reversed(_in_order(before)):
        rest[number] = times[number] + max((rest[other] for other in after[number]), default=0.0)
    return rest
