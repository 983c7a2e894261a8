"""Make the next item while the last one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def ahead(items: Iterable[Item], depth: int = 1) -> Iterator[Item]:
    """Give ``items`` in their order, made by a thread that is up to ``depth`` items ahead of the one in use.

    It pays where making an item, such as decoding and shrinking images, leaves the interpreter free, and a core is
    idle. An error of the thread is raised where its item was to come. When the iteration is left early, the thread
    ends after the items that it was asked for.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        try:
            asked = deque(pool.submit(_next, source, end) for _ in range(depth))
            while (item := asked.popleft().result()) is not end:
                asked.append(pool.submit(_next, source, end))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
            if isinstance(source, Generator):
                source.close()


def _next(source: Iterator[Any], end: object) -> Any:
    return next(source, end)
