"""Wait for a process that a test has forked, but not for ever."""

from __future__ import annotations

import os
import signal
import time


def waited(pid: int, seconds: float = 300.0) -> int:
    """Return the wait status of a child; one that does not end is killed, and the test fails.

    A child of a process that has computed in several threads waits for threads that it does not have.
    """
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the forked process did not end within {seconds:g} s")
        time.sleep(0.02)
