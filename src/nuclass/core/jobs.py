"""The frame around every script that Snakemake runs."""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.log import configure, get_logger
from nuclass.core.orphans import end_with_snakemake

_log = get_logger("nuclass.job")
_CODE: ContextVar[str | None] = ContextVar("code of the job", default=None)


def code_of_job() -> str | None:
    """Return the hash of the code that the running rule uses, its parameter ``code``; None outside of a rule.

    Running states hold it: a job that was killed is not gone on with by other code.
    """
    return _CODE.get()


@contextmanager
def snakemake_job(snakemake: Any) -> Iterator[None]:
    """Run a script's body with logging to standard error and to the rule's log file.

    A :class:`UserError` ends the job with its message alone. Any other error leaves its traceback in
    the log. Both exit with status 1. ``threads`` is passed on to the numerical libraries, which read
    it from the environment when they are first imported, so import them inside the body. The job ends with the
    Snakemake that started it. In the body :func:`code_of_job` tells the rule's code.
    """
    configure(snakemake.log[0] if snakemake.log else None)
    end_with_snakemake()
    threads = str(snakemake.threads)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = threads
    # Threads that spin while they wait bring a busy machine almost to a halt.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start = time.monotonic()
    host = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {threads} threads"
    wildcards = ", ".join(f"{key}={value}" for key, value in snakemake.wildcards.items())
    _log.info(
        "%s%s | nuclass %s, %s", snakemake.rule, f" ({wildcards})" if wildcards else "", nuclass.__version__, host
    )
    code = _CODE.set(getattr(getattr(snakemake, "params", None), "code", None))
    try:
        yield
    except UserError as error:
        _log.error("%s", error)
        sys.exit(1)
    except SystemExit as error:
        # A library that ends the process after a signal must not make the job look finished.
        _log.error("The job was stopped before its end (exit status %s)", error.code)
        sys.exit(error.code or 143)
    except Exception:  # noqa: BLE001
        _log.error("The job failed:\n%s", traceback.format_exc())
        sys.exit(1)
    finally:
        _CODE.reset(code)
    _log.info("%s finished in %.1f s", snakemake.rule, time.monotonic() - start)
