"""The running state of a fit in its work folder: written at once, taken up by the same run, removed with a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, read_json, remove_state, write_json
from nuclass.core.jobs import code_of_job
from nuclass.core.log import get_logger

LAST, NOTE, LOGS = "last.ckpt", "run.json", "log"
_IRRELEVANT = ("workers", "save_every_min", "logger", "log_every")
"""Settings of a trainer that do not change its result."""
_log = get_logger(__name__)


def save_atomically(content: Any, path: Path) -> None:
    """Write ``content`` by ``torch.save``: a kill at any moment leaves the old file whole, or the new one.

    Raises
    ------
    UserError
        The disk is full; the file that was there stays.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            raise _cause(error) from error
        stream.flush()
        os.fsync(stream.fileno())


def _cause(error: BaseException) -> BaseException:
    """Return the disk's error behind torch's complaint that its archive is cut off."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return inner or error


class Identity(str):
    """A hash of what a run depends on, which remembers the parts, so that a difference can be named."""

    parts: dict[str, Any]

    def __new__(cls, parts: dict[str, Any]) -> Identity:
        """Hash the parts."""
        text = json.dumps(parts, sort_keys=True, default=str)
        made = super().__new__(cls, hashlib.sha256(text.encode()).hexdigest()[:16])
        made.parts = {name: json.loads(json.dumps(value, default=str)) for name, value in parts.items()}
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive a trip between processes."""
        return Identity, (self.parts,)


def fingerprint(*parts: Any, **named: Any) -> Identity:
    """Return a hash of plain values; a running state is only taken up by a run of the same fingerprint.

    Parts given by name are named when they differ. What a trainer's settings hold that does not change a result, such
    as the number of workers, does not count. In a job of Snakemake the code of its rule is a part too.
    """
    everything = {f"value {number + 1}": part for number, part in enumerate(parts)} | named
    if code := code_of_job():
        everything["code"] = code
    return Identity({name: _relevant(part) for name, part in everything.items()})


def _relevant(part: Any) -> Any:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        part = dataclasses.asdict(part)
    if not isinstance(part, dict):
        return part
    return {
        key: {k: v for k, v in value.items() if k not in _IRRELEVANT}
        if key == "trainer" and isinstance(value, dict)
        else _relevant(value)
        for key, value in part.items()
    }


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """List what differs between two plain values, by the path of its keys."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        found = [differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key)) for key in keys]
        return [line for lines in found for line in lines]
    if before == now:
        return []
    shown = [repr(value) if len(repr(value)) < 40 else None for value in (before, now)]
    return [f"{path}: it was {shown[0]}, it is {shown[1]}" if all(shown) else f"{path} is another"]


def prepare(work: Path, identity: str, *, main: bool = True) -> dict[str, Any] | None:
    """Return the state to go on from, mapped from its file, or None; a state of another run is removed.

    Parameters
    ----------
    work
        Folder of the running state; made where it is missing.
    identity
        See :func:`fingerprint`.
    main
        False in a process that may not write: it comes to the same answer and removes nothing.
    """
    reason = None
    if (work / NOTE).is_file() or (work / LAST).is_file():
        reason = _misfit(work, identity)
        state = None if reason else _load(work / LAST)
        if state is not None:
            if main:
                _remove_leftovers(work)
            return state
        reason = reason or ("its files cannot be read" if (work / LAST).is_file() else None)
    if main:
        if reason:
            _log.warning("The running state in %s is removed and training begins anew: %s", work, reason)
        _remove_state(work)
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / NOTE, {"identity": str(identity), "parts": getattr(identity, "parts", None)})
    return None


def _misfit(work: Path, identity: str) -> str | None:
    """Say why a state is not of this run; None where it is."""
    try:
        note = read_json(work / NOTE)
    except UserError:
        return "the note of what it was made from is missing or broken"
    if not isinstance(note, dict):
        return "the note of what it was made from is broken"
    if note.get("identity") == identity:
        return None
    return why_another(note.get("parts"), identity)


def why_another(before: Any, identity: str) -> str:
    """Say in what a run differs from an earlier one, whose parts (see :class:`Identity`) were noted."""
    now = getattr(identity, "parts", None)
    lines = differences(before, now) if before and now else []
    return "; ".join(["it is of another run", *lines[:5], *(["..."] if len(lines) > 5 else [])])


def _load(path: Path) -> dict[str, Any] | None:
    """Return the state as it lies in its file, or None where it is missing, broken, or without its best weights."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except Exception as error:  # noqa: BLE001
        _log.warning("%s cannot be read: %s", path, str(error).splitlines()[0] if str(error) else type(error).__name__)
        return None
    best = kept(state, "Best").get("file")
    return state if isinstance(state, dict) and (best is None or (path.parent / best).is_file()) else None


def kept(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what the callback of class ``name`` kept in a state."""
    callbacks = state.get("callbacks", {}) if isinstance(state, dict) else {}
    return next((value for key, value in callbacks.items() if str(key).split("{")[0] == name), {})


def _remove_state(work: Path) -> None:
    if work.is_dir():
        for path in (*work.glob("*.ckpt"), work / NOTE, work / LOGS / "metrics.csv"):
            path.unlink(missing_ok=True)
        _remove_leftovers(work)


def _remove_leftovers(work: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for path in (*work.glob(".*.ckpt"), *work.glob(".*.start.pt")):
        path.unlink(missing_ok=True)


def clear_work(work: Path) -> None:
    """Remove the running state after the outputs are written; logs stay."""
    if not work.is_dir():
        return
    for path in work.iterdir():
        if path.name == LOGS:
            continue
        if path.is_dir():
            remove_state(path)
        else:
            path.unlink(missing_ok=True)
    if not any(work.iterdir()):
        work.rmdir()
