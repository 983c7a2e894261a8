"""Progress: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from nuclass.core.log import get_logger

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")
_LINE_EVERY_S = 30.0
_log = get_logger(__name__)


class Progress:
    """Count work done out of ``total``; use as a context manager and call :meth:`advance`.

    On a terminal it draws a tqdm bar. Anywhere else it logs one line about every 30 s with the share
    done, the rate and the time left, so that a log file stays short.
    """

    def __init__(self, total: int, description: str, unit: str = "items") -> None:
        self.total = max(int(total), 0)
        self.description = description
        self.unit = unit
        self.done = 0
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=description, unit=f" {unit}", leave=False)

    def advance(self, n: int = 1) -> None:
        """Record ``n`` more units of work."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S and self.done < self.total:
            self._last = now
            rate = self.done / max(now - self._start, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            _log.info(
                "%s: %d of %d %s (%.0f %%), %.1f a second, %.0f s left",
                self.description,
                self.done,
                self.total,
                self.unit,
                100 * self.done / max(self.total, 1),
                rate,
                left,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            seconds = time.monotonic() - self._start
            _log.info("%s: %d %s in %.1f s", self.description, self.done, self.unit, seconds)


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "items") -> Iterator[T]:
    """Yield from ``items`` while showing progress."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    with Progress(total, description, unit) as progress:
        for item in items:
            yield item
            progress.advance()
