"""Whether networks are compiled before they run: by the settings, by what it is worth, and by a trial."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import nn

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger

_log = get_logger(__name__)
Compile: TypeAlias = bool | Literal["auto"]
# Compiling takes about a minute; on an H100 that is won back within some 40,000 cells of the paper's networks.
LARGE, MANY = 50_000_000, 50_000


def compiles(wanted: Compile, device: torch.device, network: nn.Module, cells: int) -> bool:
    """Say whether a network is compiled by ``torch.compile``.

    Parameters
    ----------
    wanted
        ``auto``: on a GPU, a network of 50 million parameters and more over 50,000 cells and more, where a trial works;
        that it does not work is a warning, and so is a network that cannot be compiled: it runs as it is.
    cells
        That the network sees in all, every epoch counted.

    Raises
    ------
    UserError
        ``wanted`` is true and compilation does not work here.
    """
    if wanted == "auto":
        large = sum(parameter.numel() for parameter in network.parameters()) >= LARGE
        if device.type != "cuda" or not large or cells < MANY:
            return False
        if reason := why_not(str(device)):
            _log.warning("networks are not compiled, which makes them a third slower or more: %s", reason)
            return False
        run_uncompiled_if_need_be()
    elif wanted and (reason := why_not(str(device))):
        raise UserError(
            "Networks cannot be compiled here",
            where="compile: true",
            found=reason,
            expected="a C compiler and Python's headers",
            fix="load a compiler (on many clusters: module load gcc), or set compile: auto or false",
        )
    return bool(wanted)


def run_uncompiled_if_need_be() -> None:
    """From now on a network that cannot be compiled runs as it is; torch logs why."""
    torch._dynamo.config.suppress_errors = True  # type: ignore[attr-defined]


def is_compiled(network: nn.Module) -> bool:
    """Say whether a network was compiled in place; the copy that another process is sent never is."""
    return getattr(network, "_compiled_call_impl", None) is not None


@contextmanager
def failures_told(where: str) -> Iterator[None]:
    """Raise UserError for a network that was to be compiled and cannot be; ``where`` names what it is for."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
            raise
        found = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fix = "set compile: auto or false"
        raise UserError("The network cannot be compiled", where=where, found=found, fix=fix) from error


@lru_cache
def why_not(device: str) -> str:
    """Return why ``torch.compile`` does not work on a device, in a line; empty where it works."""
    try:
        torch.compile(_little)(torch.ones(16, device=device))
    except (RuntimeError, ImportError, OSError, KeyError, subprocess.SubprocessError) as error:
        # A KeyError is a user without a name, as in containers.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return ""


def _little(x: torch.Tensor) -> torch.Tensor:
    return (2 * x).sin() + 1


def filled(rows: int, size: int) -> torch.Tensor:
    """Return ``size`` row numbers, the last of ``rows`` rows again and again: a compiled network wants one shape."""
    return torch.arange(size).clamp_(max=rows - 1)
