"""How far a fit is: a rich bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from nuclass.core.log import get_logger
from nuclass.core.progress import readable_seconds

_log = get_logger(__name__)
_FIRST_S, _LONGEST_S = 30.0, 600.0
_DRAW_EVERY_S = 0.25


class FitProgress:
    """Show the epoch, the share done, cells a second, the time left and the best value so far.

    On a terminal a bar that is drawn four times a second. Elsewhere a line after 30 s, and then after ever longer
    times, up to ten minutes: a log of a day has some 150 lines.

    Parameters
    ----------
    description
        What is trained.
    epochs, batches
        Epochs at most; batches in one.
    done
        Batches that were seen before, in all epochs.
    """

    def __init__(self, description: str, epochs: int, batches: int, done: int = 0) -> None:
        self.description, self.epochs, self.batches = description, epochs, batches
        self.done = self._before = done
        self.cells = 0
        self.best = ""
        self._start = self._last = time.monotonic()
        self._pause = _FIRST_S
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
            self._task = self._bar.add_task(description, total=epochs * batches, completed=done, text="")
            self._bar.start()
            self._pause = _DRAW_EVERY_S

    def advance(self, cells: int) -> None:
        """Count a batch of ``cells``."""
        self.done += 1
        self.cells += cells
        now = time.monotonic()
        if now - self._last < self._pause:
            return
        self._last = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=self.line(now - self._start), refresh=True)
        else:
            self._pause = min(self._pause * 2, _LONGEST_S)
            _log.info("%s: %s", self.description, self.line(now - self._start))

    def line(self, seconds: float) -> str:
        """Return what is shown after ``seconds`` of this run."""
        total = self.epochs * self.batches
        epoch = min((self.done - 1) // max(self.batches, 1), self.epochs - 1) if self.done else 0
        left = (total - self.done) * seconds / max(self.done - self._before, 1)
        parts = [
            f"epoch {epoch + 1} of {self.epochs}",
            f"{100 * self.done / max(total, 1):.0f} %",
            f"{self.cells / max(seconds, 1e-9):.0f} cells/s",
            f"{readable_seconds(left)} left at most",
            self.best,
        ]
        return ", ".join(part for part in parts if part)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
