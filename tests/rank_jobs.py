"""Jobs for the processes of a run that need nothing but the standard library, so that they start fast."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.training.interruption import Signals, StoppedError


@dataclass
class Job:
    """What each of two processes does: its name, by rank."""

    what: tuple[str, str]
    folder: Path

    def __call__(self, signals: Signals) -> str:
        rank = int(os.environ["LOCAL_RANK"])
        (self.folder / f"{rank}.pid").write_text(str(os.getpid()))
        what = self.what[rank]
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "user":
            raise UserError("The cell is wrong", where="row 3")
        if what == "crash":
            # The other one has begun, however slow the machine is: what it does comes within the time of grace.
            while len(list(self.folder.glob("*.pid"))) < len(self.what):
                time.sleep(0.01)
            raise ZeroDivisionError("oops")
        if what == "hang":
            while True:
                time.sleep(0.05)
        if what == "wait":
            while not signals.received:
                time.sleep(0.01)
            raise StoppedError(signals.received, self.folder)
        get_logger("nuclass.tests").info("rank %d is done", rank)
        sys.stdout.write("what a library prints does no harm")
        return f"result of {rank}"
