"""Join what the stages know about each cell: where it lies, what it is, which split it is in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID, LABELLED, SPLITS

COLUMNS = ("slide", "organ", CELL_ID, "x_px", "y_px", "class", "split")


def cells_file(results: Path, slide: str) -> Path:
    """Return the path of a slide's cell table."""
    return Path(results) / "slides" / slide / "cells.parquet"


def labels_file(results: Path, slide: str) -> Path:
    """Return the path of a slide's label table."""
    return Path(results) / "labels" / slide / "labels.parquet"


def splits_file(results: Path, slide: str) -> Path:
    """Return the path of a slide's split table."""
    return Path(results) / "splits" / f"{slide}.parquet"


def load_cells(
    slides: Sequence[dict[str, Any]],
    results: str | Path,
    splits: Sequence[str] | None = None,
    only_labelled: bool = True,
) -> pd.DataFrame:
    """Join cells, labels and splits of several slides.

    Parameters
    ----------
    slides
        One dict a slide with the keys ``slide`` and ``organ`` (others are ignored).
    results
        The folder that holds ``slides/``, ``labels/`` and ``splits/``.
    splits
        Keep cells of these splits; ``None`` keeps all of them, the buffer included.
    only_labelled
        Keep only cells with a class. Otherwise the class of the others is ``""``.

    Returns
    -------
    Columns slide, organ, cell_id, x_px, y_px (slide-store px, continuous), class, split; slides in the
    order given, cells in the order of their cell table.

    Raises
    ------
    UserError
        A file is missing or unreadable, the ids of two files differ or repeat, a split is not known, or
        no cell is left.
    """
    wanted = None if splits is None else tuple(splits)
    unknown = sorted(set(wanted or ()) - set(SPLITS))
    if unknown:
        raise UserError("A split is not known", found=", ".join(unknown), expected=" | ".join(SPLITS))
    repeated = _repeated([row["slide"] for row in slides])
    if repeated:
        raise UserError("A slide was asked for twice", found=", ".join(repeated), fix="list each slide once")
    frames = [_load_slide(row["slide"], row["organ"], Path(results), wanted, only_labelled) for row in slides]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    if frame.empty:
        kind = "labelled cells" if only_labelled else "cells"
        raise UserError(
            f"No {kind} are left",
            where=", ".join(str(row["slide"]) for row in slides) or "an empty list of slides",
            found=f"0 {kind} in {'any split' if wanted is None else ' or '.join(wanted)}",
            fix="see the funnel table and the label summaries for the step that lost them",
        )
    return frame


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read ``columns`` of a Parquet table; ``cell_id`` becomes text and must not repeat."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError("A table is missing", where=path, fix="run the rule that makes it")
    try:
        present = pq.read_schema(path).names
        missing = [name for name in columns if name not in present]
        if missing:
            raise UserError(
                "A table lacks columns",
                where=path,
                found=", ".join(present),
                expected=", ".join(columns),
                fix="make the file again with this version",
            )
        frame: pd.DataFrame = pq.read_table(path, columns=list(columns)).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError("A table cannot be read", where=path, found=str(error), fix="make the file again") from error
    frame[CELL_ID] = frame[CELL_ID].map(lambda value: value.decode() if isinstance(value, bytes) else str(value))
    repeated = frame[CELL_ID][frame[CELL_ID].duplicated()]
    if len(repeated):
        raise UserError(
            "Cell ids repeat in a table",
            where=path,
            found=f"{len(repeated)} repeats, among them {_some(repeated)}",
            fix="make the file again",
        )
    return frame


def align_ids(reference: pd.DataFrame, reference_path: object, other: pd.DataFrame, other_path: object) -> pd.DataFrame:
    """Return ``other`` in the row order of ``reference``; both must hold the same ``cell_id``.

    Raises
    ------
    UserError
        Naming both files, both counts and some of the ids that only one of them has.
    """
    left, right = reference[CELL_ID].to_numpy(), other[CELL_ID].to_numpy()
    if len(left) == len(right) and (left == right).all():
        return other.reset_index(drop=True)
    rows = pd.Index(right).get_indexer(pd.Index(left))
    only_left = left[rows < 0]
    only_right = right[~pd.Index(right).isin(left)]
    if len(only_left) or len(only_right):
        parts = [f"{len(left)} cells in {reference_path}, {len(right)} in {other_path}"]
        if len(only_left):
            parts.append(f"{len(only_left)} only in the first ({_some(only_left)})")
        if len(only_right):
            parts.append(f"{len(only_right)} only in the second ({_some(only_right)})")
        raise UserError(
            "Two tables of one slide hold different cells",
            where=f"{reference_path} and {other_path}",
            found="; ".join(parts),
            expected="the same cell ids in both",
            fix="one of them is older than the other; make the second again",
        )
    return other.iloc[rows].reset_index(drop=True)


def _load_slide(
    slide: str, organ: str, results: Path, wanted: tuple[str, ...] | None, only_labelled: bool
) -> pd.DataFrame:
    cells_path = cells_file(results, slide)
    cells = read_table(cells_path, (CELL_ID, "x_px", "y_px"))
    labels_path = labels_file(results, slide)
    labels = align_ids(cells, cells_path, read_table(labels_path, (CELL_ID, "class", "status")), labels_path)
    split_path = splits_file(results, slide)
    split = align_ids(cells, cells_path, read_table(split_path, (CELL_ID, "split")), split_path)
    unknown = sorted(set(split["split"].unique()) - set(SPLITS))
    if unknown:
        raise UserError("A split is not known", where=split_path, found=", ".join(unknown), expected=" | ".join(SPLITS))
    classes = labels["class"].fillna("").where(labels["status"] == LABELLED, "").astype(str)
    labelled = (classes != "").to_numpy()
    frame = cells.assign(slide=slide, organ=organ, split=split["split"].astype(str))
    frame["class"] = classes
    keep = np.ones(len(frame), bool) if wanted is None else frame["split"].isin(wanted).to_numpy()
    if only_labelled:
        keep &= labelled
    frame = frame.loc[keep, list(COLUMNS)]
    lost = int((~np.isfinite(frame[["x_px", "y_px"]].to_numpy(np.float64))).any(axis=1).sum())
    if lost:
        raise UserError("Cells have no position", where=cells_path, found=f"{lost} cells with x_px or y_px not finite")
    return frame


def _some(values: Iterable[Any], n: int = 3) -> str:
    shown = [str(value) for value in list(values)[: n + 1]]
    return ", ".join(shown[:n]) + (", ..." if len(shown) > n else "")


def _repeated(values: Sequence[Any]) -> list[str]:
    seen = pd.Series(list(values), dtype=object)
    return [str(value) for value in seen[seen.duplicated()].unique()]
