"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for _variable in ("NUCLASS_DATA_DIRS", "NUCLASS_DATA_ROOT"):
    # A user's own data sets must not become the tests' slides.
    os.environ.pop(_variable, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts what runs in the background so, and Ctrl-C could not be tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A training sets the threads of its process; with several, what later tests fork waits for threads for ever."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def job_environment() -> Iterator[None]:
    """A job sets the threads of its process; other tests in this one must not inherit them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public sample data; skips where it is not given."""
    folder = os.environ.get("NUCLASS_REAL_DATA", "")
    if not folder:
        pytest.skip("NUCLASS_REAL_DATA is not set: no real sample data")
    if not Path(folder).is_dir():
        pytest.fail(f"NUCLASS_REAL_DATA is not a folder: {folder}")
    return Path(folder)
