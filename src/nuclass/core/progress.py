"""Progress: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from nuclass.core.log import get_logger

if TYPE_CHECKING:
    from types import TracebackType

BYTES = "bytes"
_LINE_EVERY_S = 30.0
_log = get_logger(__name__)


class Progress:
    """Count work done out of ``total``; use as a context manager and call :meth:`advance`.

    On a terminal it draws a tqdm bar. Anywhere else it logs one line about every 30 s with the share
    done, the rate and the time left, so that a log file stays short.

    Parameters
    ----------
    total
        How much there is to do, in units; 0 where it is not known.
    description
        What is done.
    unit
        The unit; ``bytes`` are told as kB, MB or GB.
    done
        How much was done before; it does not count in the rate.
    """

    def __init__(self, total: int, description: str, unit: str = "items", done: int = 0) -> None:
        self.total = max(int(total), 0)
        self.description = description
        self.unit = unit
        self.done = self._before = done
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            scaled = {"unit": "B", "unit_scale": True} if unit == BYTES else {"unit": f" {unit}"}
            self._bar = tqdm(total=self.total or None, desc=description, initial=done, leave=False, **scaled)  # type: ignore[call-overload]

    def advance(self, n: int = 1) -> None:
        """Record ``n`` more units of work."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY_S and (self.done < self.total or not self.total):
            self._last = now
            _log.info("%s: %s", self.description, self.line(now - self._start))

    def line(self, seconds: float) -> str:
        """Return what is done, the rate and the time left, after ``seconds`` of work."""
        rate = (self.done - self._before) / max(seconds, 1e-9)
        speed = f"{_amount(rate, self.unit)}/s" if self.unit == BYTES else f"{rate:.1f} a second"
        if not self.total:
            return f"{_amount(self.done, self.unit)}, {speed}"
        left = readable_seconds((self.total - self.done) / max(rate, 1e-9))
        share = f"{100 * self.done / self.total:.0f} %"
        of = f"{_amount(self.done, self.unit)} of {_amount(self.total, self.unit)}"
        if self.unit != BYTES:
            of = f"{self.done} of {self.total} {self.unit}"
        return f"{of} ({share}), {speed}, {left} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            seconds = time.monotonic() - self._start
            rate = f", {_amount((self.done - self._before) / max(seconds, 1e-9), BYTES)}/s"
            _log.info(
                "%s: %s in %s%s",
                self.description,
                _amount(self.done, self.unit),
                readable_seconds(seconds),
                rate if self.unit == BYTES else "",
            )


def _amount(value: float, unit: str) -> str:
    return readable_bytes(value) if unit == BYTES else f"{value:.0f} {unit}"


def readable_bytes(value: float) -> str:
    """Return a number of bytes as people say it, such as ``1.2 GB`` (1 kB = 1000 bytes)."""
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit * 0.9995:
            return f"{value / limit:.1f} {name}"
    return f"{value:.0f} bytes"


def readable_seconds(value: float) -> str:
    """Return a time span as people say it, such as ``12.3 s``, ``2 min 5 s`` or ``1 h 10 min``."""
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    if value < 100 * 3600:
        return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"
    return "over 100 h"
