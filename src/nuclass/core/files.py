"""Atomic writes: a reader sees the whole new file, the whole old one, or none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError
from nuclass.core.leftovers import remove, temporary_name

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes the final name, on failure it goes.

    Works for a file and for a folder. The suffixes are kept, for writers that look at them. What a writer of the same
    file that was killed has left is removed.

    Raises
    ------
    UserError
        If the disk, or the quota on it, is full; what was there before stays.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(final)
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"Nothing was written for {final}")
        _take_place(temporary, final)
    except OSError as error:
        remove(temporary)
        if error.errno in (28, 122):
            raise UserError(
                "The disk is full",
                where=final,
                found=str(error),
                fix="free space or quota on that disk and start again; finished files are kept",
            ) from error
        raise
    except BaseException:
        remove(temporary)
        raise


def _take_place(temporary: Path, final: Path) -> None:
    """Give ``temporary`` its final name, in place of what is there.

    No folder can take the place of another one at once. The old one gets a name of unfinished files first, under which
    the next writer removes it where this process is killed: it is never seen half removed under its final name.
    """
    if not (temporary.is_dir() and final.is_dir()):
        temporary.replace(final)
        return
    aside = final.with_name(f".{os.getpid()}.{final.name}")
    remove(aside)
    final.rename(aside)
    try:
        temporary.replace(final)
    except BaseException:
        with suppress(OSError):
            aside.rename(final)
        raise
    remove(aside)


def remove_state(folder: str | Path) -> None:
    """Remove the folder of a running state, where it is there.

    Its notes, the JSON files, go first: without them nothing is taken up of what a kill on the way leaves.
    """
    for note in list(Path(folder).rglob("*.json")):
        with suppress(OSError):
            note.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: str | Path, data: Any) -> None:
    """Write ``data`` as readable JSON (numpy scalars and arrays are allowed; NaN becomes null)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_plain(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a broken one is a :class:`UserError` with line and column."""
    file = Path(path)
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError("A file is missing", where=file, fix="check the path, or make the file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            "A file is not text", where=file, found=str(error), expected="JSON in UTF-8", fix="write the file again"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            "A file is not valid JSON",
            where=f"{file}, line {error.lineno}, column {error.colno}",
            found=error.msg,
            fix="write the file again; it may be cut off",
        ) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise UserError("A folder stands where a file is wanted", where=file, fix="name the file in it") from error
    except (RecursionError, ValueError) as error:
        raise UserError(
            "A file holds what no JSON of this kind does",
            where=file,
            found="values nested too deep" if isinstance(error, RecursionError) else str(error),
            fix="write the file again",
        ) from error


def write_parquet(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet (zstd), without its index."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")


def write_csv(path: str | Path, frame: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a table as CSV, without its index."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, float_format=float_format)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _plain(data: Any) -> Any:
    """Turn numpy values, paths and NaN into what JSON knows."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set):
        return [_plain(value) for value in data]
    if hasattr(data, "tolist"):
        return _plain(data.tolist())
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data
