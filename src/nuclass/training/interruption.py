"""Signals that ask a training run to leave: it saves its state first, and says so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from nuclass.core.errors import UserError

REQUESTS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT") if hasattr(signal, name))
"""What Slurm, a scheduler or a person sends to end a run."""


class StoppedError(UserError):
    """The run was asked to leave, and left; starting it again goes on from what is saved.

    Parameters
    ----------
    number
        Number of the signal.
    saved
        Where the running state lies.
    """

    def __init__(self, number: int, saved: object) -> None:
        self.number, self.saved = number, saved
        super().__init__(
            f"Stopped by {signal_name(number)}, state saved in {saved}",
            fix="start the same again: it goes on from there to the same result",
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Survive a trip between processes."""
        return StoppedError, (self.number, self.saved)


def signal_name(number: int) -> str:
    """Return a signal's name, such as ``SIGTERM``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Signals:
    """While it is open, signals that ask to leave do not end the process; the first is :attr:`received` (0: none).

    A second Ctrl-C raises ``KeyboardInterrupt`` at once. What the handlers were before comes back at the end. In a
    thread that is not the main one, and for signals that are ignored (``nohup``), nothing is changed.

    Parameters
    ----------
    forward
        Called with the signal's number, to pass it on to other processes.
    interactive
        Listen to Ctrl-C. Off in processes whose parent listens.
    """

    def __init__(self, forward: Callable[[int], None] | None = None, *, interactive: bool = True) -> None:
        self.received = 0
        self._forward = forward
        self._interactive = interactive
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.getsignal(n) for n in REQUESTS if signal.getsignal(n) is not signal.SIG_IGN}
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals over again, after a library has set handlers of its own."""
        for number in self._before:
            quiet = number == signal.SIGINT and not self._interactive
            signal.signal(number, signal.SIG_IGN if quiet else self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = self.received or number
        if self._forward is not None:
            self._forward(number)


@contextmanager
def leaving(saved: object) -> Iterator[None]:
    """Raise :class:`StoppedError` at once when asked to leave; for work that is saved part by part.

    Asked again while it leaves, it is not disturbed.
    """
    asked = False

    def leave(number: int) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise StoppedError(number, saved)

    with Signals(leave):
        yield
