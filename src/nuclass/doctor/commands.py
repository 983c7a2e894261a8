"""Other programs, asked with a limit of time: Slurm, the GPU's driver, conda."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a program answered.

    Attributes
    ----------
    status
        Its exit status; None where it did not end in time, or could not be started.
    out, err
        What it wrote, without blanks at the ends. Where it could not be started ``err`` says why.
    """

    status: int | None
    out: str
    err: str

    @property
    def well(self) -> bool:
        """Whether it ended with status 0."""
        return self.status == 0

    @property
    def reason(self) -> str:
        """Why it did not end well, in one line."""
        if self.status is None:
            return self.err
        last = (self.err or self.out).splitlines()
        return f"exit status {self.status}" + (f": {last[-1].strip()}" if last else "")


def find(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the place of a program on the search path of ``environ``, None where there is none."""
    return shutil.which(name, path=environ.get("PATH", os.defpath))


def ask(words: Sequence[str], environ: Mapping[str, str], limit_s: float = 5.0) -> Answer:
    """Run a program and return what it answered; after ``limit_s`` it is ended with all that it started."""
    place = find(words[0], environ) if os.sep not in words[0] else words[0]
    if place is None:
        return Answer(None, "", f"the command {words[0]} is not found")
    try:
        process = subprocess.Popen(
            [place, *words[1:]],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", f"{words[0]} cannot be started: {error.strerror or error}")
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Answer(None, "", f"{words[0]} gave no answer within {limit_s:g} s")
    return Answer(process.returncode, out.strip(), err.strip())
