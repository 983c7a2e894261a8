"""Measure the memory that Python and NumPy hold at the most, in a process of its own.

To stop `tracemalloc` among the native threads that other tests have left may crash Python 3.11; the process here notes
its memory to its end.
"""

from __future__ import annotations

import multiprocessing
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def measuring_process() -> Iterator[ProcessPoolExecutor]:
    """A process in which :func:`held` measures."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=tracemalloc.start) as pool:
        yield pool


def held(function: Callable[..., Any], *arguments: object) -> tuple[Any, int, int]:
    """Return a function's result, the bytes it held at the most, and those that its result still holds."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    result = function(*arguments)
    after, peak = tracemalloc.get_traced_memory()
    return result, peak - before, after - before


def measured(function: Callable[..., Any], *arguments: object, seconds: float = 300) -> Any:
    """Call a function of a test module, which measures with :func:`held`, in a process of its own."""
    with measuring_process() as pool:
        return pool.submit(function, *arguments).result(seconds)
