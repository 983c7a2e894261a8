"""A data set of three files: windows at two scales and what is known of each cell.

The files lie in one folder, or in ``train/`` and ``test/`` below it (the original's test chose its models, so it is our
val). Each check stands alone, so that they can be told one by one; :func:`open_trio` makes them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID, GLOBAL, LOCAL
from nuclass.core.patch_rows import find_patches
from nuclass.patches.annotations import read_annotations
from nuclass.patches.patch_file import PatchFile

if TYPE_CHECKING:
    import pandas as pd

ROLES = (LOCAL, GLOBAL)
MPP_TOLERANCE = 0.01
_SHOWN = 3


@dataclass(frozen=True)
class Part:
    """The three files of one folder.

    Attributes
    ----------
    folder
        Where they lie.
    split
        ``train`` or ``val``; empty where the data set is not divided.
    annotations
        Path of ``annotations.json``.
    files
        ``local`` and ``global`` -> its windows.
    """

    folder: Path
    split: str
    annotations: Path
    files: Mapping[str, PatchFile]


@dataclass(frozen=True)
class Trio:
    """A data set whose files fit each other.

    Attributes
    ----------
    folder
        The folder that was given.
    parts
        One for a data set in one folder, else train and val.
    cells
        The annotations of all parts, one after the other, in the order of each file (see
        :func:`nuclass.patches.annotations.read_annotations`), with ``split``.
    rows
        In the same order: cell_id, ``part`` (place in ``parts``), ``local`` and ``global`` (row in the part's files).
    sides
        ``local`` and ``global`` -> side of the stored windows, px.
    mpp
        Micrometres per pixel as the annotations say, None where they do not.
    notes
        What is odd but can be read.
    """

    folder: Path
    parts: tuple[Part, ...]
    cells: pd.DataFrame
    rows: pd.DataFrame
    sides: dict[str, int]
    mpp: float | None
    notes: list[str] = field(default_factory=list)

    def read(self, role: str, places: ArrayLike) -> NDArray[np.uint8]:
        """Read stored windows of cells by their place in :attr:`rows`, uint8 ``(N, S, S, 3)``, in the order asked."""
        wanted = np.asarray(places, dtype=np.int64)
        side = self.sides[role]
        out = np.empty((len(wanted), side, side, 3), np.uint8)
        part = self.rows["part"].to_numpy()[wanted]
        row = self.rows[role].to_numpy()[wanted]
        ids = self.rows[CELL_ID].to_numpy()[wanted]
        for number, one in enumerate(self.parts):
            here = np.flatnonzero(part == number)
            if len(here):
                out[here] = one.files[role].read(row[here], ids[here])
        return out

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        close_parts(self.parts)

    def __enter__(self) -> Trio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_trio(folder: str | Path, windows: Mapping[str, int], mpp: float) -> Trio:
    """Find, open and check the files of a data set.

    Parameters
    ----------
    folder
        The folder of the files, or of ``train/`` and ``test/`` with them.
    windows
        Sides of the study's windows in px, by ``local`` and ``global``.
    mpp
        Micrometres per pixel of the study.

    Raises
    ------
    UserError
        A file is missing or cannot be read; the files are of different cells; the sizes, or the scale, are not those of
        the study; a cell has no position; a cell is in train and in test.
    """
    parts = open_parts(folder, windows)
    try:
        frames, matched = [], []
        for part in parts:
            frame = read_annotations(part.annotations)
            check_positions(frame, part)
            frames.append(frame)
            matched.append(match_ids(frame[CELL_ID], part))
        check_disjoint(frames, parts)
        sides, notes = check_sides(parts, windows)
        scale, said = check_scale(frames, mpp, folder)
        return assemble(folder, parts, frames, matched, sides, scale, notes + said)
    except BaseException:
        close_parts(parts)
        raise


def assemble(
    folder: str | Path,
    parts: Sequence[Part],
    frames: Sequence[pd.DataFrame],
    matched: Sequence[pd.DataFrame],
    sides: dict[str, int],
    scale: float | None,
    notes: Sequence[str],
) -> Trio:
    """Return a data set from what was found of each part: annotations, and rows in both files."""
    import pandas as pd

    cells = pd.concat([f.assign(split=p.split) for f, p in zip(frames, parts, strict=True)], ignore_index=True)
    rows = pd.concat([frame.assign(part=np.int8(i)) for i, frame in enumerate(matched)], ignore_index=True)
    told = [f"{file.path.name}: {note}" for part in parts for file in part.files.values() for note in file.notes]
    slides = cells["slide_id"].unique() if "slide_id" in cells else []
    if len(slides) > 1:
        named = ", ".join(str(slide) for slide in slides[:_SHOWN])
        told.append(f"the cells are of {len(slides)} slides ({named}); their positions are taken as of one")
    unlabelled = int((cells["label"] == "").sum())
    if unlabelled:
        told.append(f"{unlabelled} of {len(cells)} cells have no label")
    told = list(dict.fromkeys([*notes, *told]))
    return Trio(Path(folder), tuple(parts), cells, rows[[CELL_ID, "part", *ROLES]], sides, scale, told)


def open_parts(folder: str | Path, windows: Mapping[str, int]) -> list[Part]:
    """Find the files of a data set, open those of windows, and look at type and size of every window.

    Raises
    ------
    UserError
        See :func:`nuclass.core.patch_rows.find_patches` and :class:`nuclass.patches.patch_file.PatchFile`.
    """
    parts: list[Part] = []
    try:
        for split, paths in find_patches(folder, windows).files.items():
            files: dict[str, PatchFile] = {}
            parts.append(Part(paths["annotations"].parent, split, paths["annotations"], files))
            for role in ROLES:
                files[role] = PatchFile(paths[role])
                files[role].look_at_all()
    except BaseException:
        close_parts(parts)
        raise
    return parts


def close_parts(parts: Sequence[Part]) -> None:
    """Close the files of windows; a read opens them again."""
    for part in parts:
        for file in part.files.values():
            file.close()


def match_ids(ids: pd.Series[Any], part: Part) -> pd.DataFrame:
    """Return the rows of cells in both files of windows: cell_id, local, global; all three must hold the same ids.

    Raises
    ------
    UserError
        Naming each file, how many ids it lacks, and the first ones; or that ids lost their leading zeros.
    """
    import pandas as pd

    table = pd.DataFrame({CELL_ID: ids.to_numpy()})
    names = {role: file.path.name for role, file in part.files.items()}
    known = {role: pd.Index(file.keys, dtype=object) for role, file in part.files.items()}
    wanted = pd.Index(ids.to_numpy(), dtype=object)
    for role, index in known.items():
        table[role] = index.get_indexer(wanted)
    lacking = {names[role]: wanted[table[role].to_numpy() < 0] for role in known}
    extra = {names[role]: index[wanted.get_indexer(index) < 0] for role, index in known.items()}
    if not any(map(len, (*lacking.values(), *extra.values()))):
        return table
    for role, index in known.items():
        _refuse_lost_zeros(wanted, index, part, names[role])
    counts = ", ".join(f"{len(known[role])} in {names[role]}" for role in known)
    told = [_some(f"not in {name}", gone) for name, gone in lacking.items() if len(gone)]
    told += [_some(f"only in {name}", more) for name, more in extra.items() if len(more)]
    raise UserError(
        "The three files are of different cells",
        where=part.folder,
        found=f"{len(wanted)} cells in {part.annotations.name}, {counts}; {'; '.join(told)}",
        expected="the same cell ids in all three",
        fix="take the three files from one run, or write the one that lacks cells again",
    )


def check_sides(parts: Sequence[Part], windows: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    """Return the side of the stored windows by role, and what is to be told of it.

    Global windows may be stored at half their size, which is what models look at.

    Raises
    ------
    UserError
        The windows have another size than the study's, or train and test differ.
    """
    sides: dict[str, int] = {}
    notes = []
    for role in ROLES:
        found = {part.files[role].side: part.files[role].path for part in parts}
        if len(found) > 1:
            told = ", ".join(f"{path}: {side} px" for side, path in found.items())
            raise UserError("Windows of train and test differ in size", found=told, fix="write both at one size")
        side, path = next(iter(found.items()))
        whole = windows[role]
        halved = role == GLOBAL and side * 2 == whole
        if side != whole and not halved:
            raise UserError(
                "Windows have another size than the study's",
                where=path,
                found=f"{side} px",
                expected=f"{whole} px" + (f", or {whole // 2} px (half size)" if role == GLOBAL else ""),
                fix=f"set windows.{role} in the configuration to {side}, or write the windows again",
            )
        if halved:
            notes.append(f"the global windows are stored at half size, {side} of {whole} px")
        sides[role] = side
    return sides, notes


def check_positions(cells: pd.DataFrame, part: Part) -> None:
    """Refuse cells without a place.

    Raises
    ------
    UserError
        ``centroid_x`` or ``centroid_y`` is missing or no finite number; they tell where a cell lies, which splits and
        maps rest on.
    """
    absent = [name for name in ("centroid_x", "centroid_y") if name not in cells]
    lost = ~np.isfinite(cells[["centroid_x", "centroid_y"]].to_numpy(np.float64)).all(axis=1) if not absent else []
    if absent or np.any(lost):
        first = "" if absent else f", the first is {cells[CELL_ID].to_numpy()[lost][0]}"
        raise UserError(
            "Cells have no position",
            where=part.annotations,
            found=f"no {' and no '.join(absent)}" if absent else f"{int(np.sum(lost))} of {len(cells)}{first}",
            expected="centroid_x and centroid_y of every cell, px at the scale of the windows",
            fix="write the annotations again with them: splits rest on where cells lie",
        )


def check_scale(frames: Sequence[pd.DataFrame], mpp: float, where: object) -> tuple[float | None, list[str]]:
    """Return the scale that annotations state, None where they state none, and what is to be told of it.

    Raises
    ------
    UserError
        It is not the study's to within 1 %.
    """
    stated = [frame["micron_per_pixel"].to_numpy(np.float64) for frame in frames if "micron_per_pixel" in frame]
    values = np.concatenate([*stated, np.empty(0)])
    values = values[~np.isnan(values)]
    if not len(values):
        return None, [f"the annotations do not state micron_per_pixel; taken as {mpp:g} um/px"]
    odd = ~(np.abs(values / mpp - 1) <= MPP_TOLERANCE)
    if odd.any():
        raise UserError(
            "The windows have another scale than the study",
            where=where,
            found=f"micron_per_pixel {values[odd][0]:g} in {int(odd.sum())} cells",
            expected=f"{mpp:g} um/px, the study's mpp, to within 1 %",
            fix="set mpp in the configuration to that of the windows, or cut the windows again",
        )
    return float(np.median(values)), []


def check_disjoint(cells: Sequence[pd.DataFrame], parts: Sequence[Part]) -> None:
    """Refuse cells that are in train and in test.

    Raises
    ------
    UserError
        Naming how many and the first ones.
    """
    if len(cells) < 2:
        return
    both = cells[0].loc[cells[0][CELL_ID].isin(cells[1][CELL_ID]), CELL_ID].to_numpy()
    if len(both):
        raise UserError(
            "Cells are in train and in test",
            where=" and ".join(str(part.annotations) for part in parts),
            found=_some("in both", both),
            expected="each cell on one side",
            fix="divide the data set again; a model must not be judged on what it has learnt",
        )


def _refuse_lost_zeros(wanted: pd.Index[Any], keys: pd.Index[Any], part: Part, name: str) -> None:
    """Tell of ids that differ by nothing but leading zeros, which go where ids are read as numbers."""
    for here, there, loser in ((wanted, keys, name), (keys, wanted, part.annotations.name)):
        missing = here[there.get_indexer(here) < 0].astype(str)
        padded = missing[missing.str.fullmatch(r"0+\d+")]
        bare = padded.str.lstrip("0")
        bare = bare.where(bare != "", "0")
        lost = there.get_indexer(bare) >= 0
        if lost.any():
            raise UserError(
                "Cell ids have lost their leading zeros",
                where=part.folder / loser,
                found=f"{bare[lost][0]} where the other file has {padded[lost][0]} ({int(lost.sum())} cells)",
                expected="the same ids in all three files",
                fix=f"ids with leading zeros were read as numbers; write {loser} again with ids as text",
            )


def _some(words: str, ids: Any) -> str:
    # Quoted where blanks would not be seen.
    shown = ", ".join(cell if cell == cell.strip() else repr(cell) for cell in map(str, ids[:_SHOWN]))
    return f"{len(ids)} {words} ({shown}{', ...' if len(ids) > _SHOWN else ''})"
