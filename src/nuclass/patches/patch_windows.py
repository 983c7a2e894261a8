"""Windows read from patch files, by the manifest that importing wrote."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.names import CELL_ID
from nuclass.patches.states import FORMAT, file_state
from nuclass.patches.windows import CHUNK_BYTES, Image, shrink

if TYPE_CHECKING:
    from nuclass.patches.patch_file import PatchFile

PER_KEY = "per_key"
_AGAIN = "start snakemake again, which takes the files in anew; without it, run nuclass patches import"


class PatchWindows:
    """Windows of one slide given as patch files; see :class:`nuclass.patches.windows.Windows`.

    Parameters
    ----------
    path
        The manifest ``patches.json``; ``patches.parquet`` lies beside it.

    Attributes
    ----------
    windows
        Role (``local``, ``global``) -> side in level-0 px of what the stored windows show.
    sides
        Role -> side in px at which they are stored: the same, or half of it.

    Every read is exact. Pickles as its path and opens its files again in the process that reads; forking is safe.

    Raises
    ------
    UserError
        The manifest is missing or of another version, or a patch file is not the one that was imported.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = _read_manifest(self.path)
        self.mpp = float(manifest["mpp"])
        self.windows: dict[str, int] = manifest["windows"]
        self.sides: dict[str, int] = manifest["sides"]
        self._parts: list[dict[str, dict[str, Any]]] = [part["files"] for part in manifest["parts"]]
        for files in self._parts:
            for file in files.values():
                _check_unchanged(file)
        self._part, self._rows, self._ids = _read_rows(self.path.with_suffix(".parquet"), self._parts)
        self._open: dict[tuple[int, str], PatchFile] = {}

    def __len__(self) -> int:
        return len(self._part)

    def cut(self, rows: ArrayLike | None, xy: ArrayLike, size: int, level: int, out_px: int) -> Image:
        """Return one window a row, uint8 ``(N, out_px, out_px, 3)``; ``xy`` and ``level`` are not needed.

        Rows are read in the order of the files, each once.

        Raises
        ------
        UserError
            No file holds windows of this size, or they are stored smaller than ``out_px``.
        """
        role = self._role(size, out_px)
        if rows is None:
            raise ValueError("Windows from patch files need the rows of the cells")
        wanted, inverse = np.unique(np.asarray(rows, dtype=np.int64).reshape(-1), return_inverse=True)
        out = np.empty((len(wanted), out_px, out_px, 3), np.uint8)
        places, parts = self._rows[role][wanted], self._part[wanted]
        chunk = max(CHUNK_BYTES // (self.sides[role] ** 2 * 3), 1)
        for part in np.unique(parts).tolist():
            here = np.flatnonzero(parts == part)
            here = here[np.argsort(places[here], kind="stable")]
            file = self._file(part, role)
            for start in range(0, len(here), chunk):
                some = here[start : start + chunk]
                keys = None
                if self._ids is not None and file.layout == PER_KEY:
                    keys = self._ids.take(wanted[some]).to_pylist()
                out[some] = shrink(file.read(places[some], keys), out_px)
        return out if np.array_equal(inverse, np.arange(len(wanted))) else out[inverse]

    def padded(self, rows: ArrayLike | None, xy: ArrayLike, size: int) -> NDArray[np.float32]:
        """Return the share of each window that lies off the slide, NaN where the files do not hold it.

        Those that ``nuclass patches export`` wrote in the merged layout do (dataset ``padded``).
        """
        role = self._role(size, 1)
        places = np.asarray(rows, dtype=np.int64).reshape(-1)
        out = np.full(len(places), np.nan, np.float32)
        for part in np.unique(self._part[places]).tolist():
            shares = self._file(part, role).padded()
            if shares is not None:
                here = self._part[places] == part
                out[here] = shares[self._rows[role][places[here]]]
        return out

    @property
    def cached_mb(self) -> float:
        """Pixels kept in memory, MB: none."""
        return 0.0

    def trim(self, keep_mb: float) -> None:
        """Do nothing, for no pixels are kept."""

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        for file in self._open.values():
            file.close()
        self._open = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def _role(self, size: int, out_px: int) -> str:
        role = next((role for role, side in self.windows.items() if side == size), None)
        if role is None:
            raise UserError(
                "No patch file holds windows of the size asked for",
                where=self.path,
                found=f"{size} px",
                expected=" or ".join(f"{side} px" for side in self.windows.values()),
                fix="set 'windows' in the configuration to the sizes of the files, or cut the windows from the slide",
            )
        stored = self.sides[role]
        if stored < size and out_px > stored:
            raise UserError(
                "Windows are stored smaller than they are asked for",
                where=self.path,
                found=f"windows of {size} px stored at {stored} px",
                expected=f"{out_px} px",
                fix=f"use them at {stored} px or less, or write them at full size",
            )
        return role

    def _file(self, part: int, role: str) -> PatchFile:
        from nuclass.patches.patch_file import PatchFile

        if (part, role) not in self._open:
            file = self._parts[part][role]
            if file["layout"] == PER_KEY:
                opened = PatchFile.known(file["path"], tuple(file["shape"]), file["count"])
            else:
                opened = PatchFile(file["path"])
            self._open[part, role] = opened
        return self._open[part, role]


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format", "none") if isinstance(manifest, dict) else "none"
        raise UserError(
            "This is not a list of patch files that this version reads",
            where=path,
            found=f"format {found}",
            expected=f"format {FORMAT}",
            fix=_AGAIN,
        )
    return manifest


def _check_unchanged(file: dict[str, Any]) -> None:
    """Refuse a patch file, or a slide that virtual windows point into, that is not the one that was taken in."""
    for known in (file, *file.get("sources", ())):
        path = Path(known["path"])
        if not path.is_file():
            raise UserError("A patch file is missing", where=path, fix=f"put it back; or {_AGAIN}")
        now = file_state(path)
        if any(now[key] != known[key] for key in now):
            raise UserError(
                "A patch file changed since it was imported",
                where=path,
                found=_told(now),
                expected=_told(known),
                fix=_AGAIN,
            )


def _told(state: dict[str, int]) -> str:
    changed = datetime.fromtimestamp(state["mtime_ns"] / 1e9).astimezone()
    return f"{state['size']} bytes, changed {changed:%Y-%m-%d %H:%M:%S.%f}"


def _read_rows(
    path: Path, parts: list[dict[str, dict[str, Any]]]
) -> tuple[NDArray[np.int8], dict[str, NDArray[np.int32]], Any]:
    """Return part and rows of each cell; the ids too, as arrow text, where a file names its windows by them."""
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError("The rows of the patch files are missing", where=path, fix=_AGAIN)
    roles = list(parts[0])
    named = any(file["layout"] == PER_KEY for files in parts for file in files.values())
    table = pq.read_table(path, columns=["part", *roles, *([CELL_ID] if named else [])])
    rows = {role: table[role].to_numpy().astype(np.int32) for role in roles}
    ids = table[CELL_ID].combine_chunks() if named else None
    return table["part"].to_numpy().astype(np.int8), rows, ids
