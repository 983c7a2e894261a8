"""Join what the stages know about each cell: where it lies, what it is, which split it is in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID, LABELLED, SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("slide", "organ", CELL_ID, "row", "x_px", "y_px", "class", "split")
_TEXT = (CELL_ID, "class", "status", "reason", "split")


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
        One dict a slide with the keys ``slide`` and ``organ``, and the paths of its tables under ``cells``, ``labels``
        and ``splits`` where they lie elsewhere than below ``results`` (others are ignored).
    results
        The folder that holds ``slides/``, ``labels/`` and ``splits/``.
    splits
        Keep cells of these splits; ``None`` keeps all of them, the buffer included.
    only_labelled
        Keep only cells with a class. Otherwise the class of the others is ``""``.

    Returns
    -------
    Slides in the order given, cells in the order of their cell table, about 45 bytes a cell: slide, organ, class
    and split (categorical, the names that occur, sorted; group by them with ``observed=True``), cell_id (text held
    by Arrow), row (int32, in the slide's cell table), x_px and y_px (slide-store px, continuous).

    Raises
    ------
    UserError
        A file is missing or unreadable, the ids of two files differ, repeat or are missing, a split is not known,
        or no cell is left.
    """
    wanted = None if splits is None else tuple(splits)
    unknown = sorted(set(wanted or ()) - set(SPLITS))
    if unknown:
        raise UserError("A split is not known", found=", ".join(unknown), expected=" | ".join(SPLITS))
    repeated = _repeated([row["slide"] for row in slides])
    if repeated:
        raise UserError("A slide was asked for twice", found=", ".join(repeated), fix="list each slide once")
    tables = [_load_slide(row, Path(results), wanted, only_labelled) for row in slides]
    if not sum(table.num_rows for table in tables):
        kind = "labelled cells" if only_labelled else "cells"
        raise UserError(
            f"No {kind} are left",
            where=", ".join(str(row["slide"]) for row in slides) or "an empty list of slides",
            found=f"0 {kind} in {'any split' if wanted is None else ' or '.join(wanted)}",
            fix="see the funnel table and the label summaries for the step that lost them",
        )
    frame = _compact([str(row["slide"]) for row in slides], [str(row["organ"]) for row in slides], tables)
    del tables
    give_back_memory()
    return frame


def give_back_memory() -> None:
    """Hand what Arrow no longer uses back to the system, before worker processes inherit it."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read ``columns`` of a Parquet table; text columns become strings without gaps, ``cell_id`` must have none.

    Whether ids repeat is checked by :func:`check_ids` and :func:`align_ids`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
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
        table = pq.read_table(path, columns=list(columns))
        for place, name in enumerate(columns):
            if name in _TEXT:
                table = table.set_column(place, name, table[name].cast(pa.string()).combine_chunks())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError("A table cannot be read", where=path, found=str(error), fix="make the file again") from error
    nameless = table[CELL_ID].null_count
    if nameless:
        raise UserError("Cells have no id", where=path, found=f"{nameless} empty fields in the column {CELL_ID}")
    for place, name in enumerate(columns):
        if table[name].null_count and name in _TEXT:
            table = table.set_column(place, name, pc.fill_null(table[name], ""))
    return table


def check_ids(table: pa.Table, path: object) -> None:
    """Raise when cell ids of a table repeat, with how many and some of them."""
    import pyarrow.compute as pc

    ids = table[CELL_ID]
    repeats = len(ids) - pc.count_distinct(ids).as_py()
    if repeats:
        values = ids.to_pandas()
        raise UserError(
            "Cell ids repeat in a table",
            where=path,
            found=f"{repeats} repeats, among them {_some(values[values.duplicated()])}",
            fix="make the file again",
        )


def align_ids(reference: pa.Table, reference_path: object, other: pa.Table, other_path: object) -> pa.Table:
    """Return ``other`` in the row order of ``reference``, whose ids must not repeat; both must hold the same cells.

    Raises
    ------
    UserError
        Ids of ``other`` repeat; or, naming both files, both counts and some of the ids that only one of them has.
    """
    import pyarrow.compute as pc

    left, right = reference[CELL_ID].combine_chunks(), other[CELL_ID].combine_chunks()
    if left.equals(right):
        return other
    check_ids(other, other_path)
    rows = pc.index_in(left, value_set=right)
    only_left = left.filter(pc.is_null(rows))
    only_right = right.filter(pc.invert(pc.is_in(right, value_set=left)))
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
    return other.take(rows)


def _load_slide(row: dict[str, Any], results: Path, wanted: tuple[str, ...] | None, only_labelled: bool) -> pa.Table:
    """Return cell_id, row, x_px, y_px, class and split of the cells of one slide that are kept."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = {"cells": cells_file, "labels": labels_file, "splits": splits_file}
    slide = str(row["slide"])
    cells_path, labels_path, split_path = (Path(row.get(k) or f(results, slide)) for k, f in places.items())
    cells = read_table(cells_path, (CELL_ID, "x_px", "y_px"))
    check_ids(cells, cells_path)
    labels = align_ids(cells, cells_path, read_table(labels_path, (CELL_ID, "class", "status")), labels_path)
    split = align_ids(cells, cells_path, read_table(split_path, (CELL_ID, "split")), split_path)["split"]
    unknown = sorted(set(pc.unique(split).to_pylist()) - set(SPLITS))
    if unknown:
        found = ", ".join(name or "an empty field" for name in unknown)
        raise UserError("A split is not known", where=split_path, found=found, expected=" | ".join(SPLITS))
    classes = pc.if_else(pc.equal(labels["status"], LABELLED), labels["class"], "")
    keep = np.ones(cells.num_rows, bool)
    if wanted is not None:
        keep &= pc.is_in(split, value_set=pa.array(wanted, pa.string())).to_numpy()
    if only_labelled:
        keep &= pc.not_equal(classes, "").to_numpy()
    rows = pa.array(np.arange(cells.num_rows, dtype=np.int32))
    table = cells.append_column("row", rows).append_column("class", classes).append_column("split", split)
    table = table.filter(pa.array(keep))
    xy = [table[name].to_numpy() for name in ("x_px", "y_px")]
    lost = table.num_rows - int((np.isfinite(xy[0]) & np.isfinite(xy[1])).sum())
    if lost:
        raise UserError("Cells have no position", where=cells_path, found=f"{lost} cells with x_px or y_px not finite")
    return table


def _compact(slides: list[str], organs: list[str], tables: list[pa.Table]) -> pd.DataFrame:
    """Join the tables of all slides in columns that take few bytes."""
    import pyarrow as pa

    sizes = np.array([table.num_rows for table in tables])
    joined = pa.concat_tables(tables)
    frame = {
        "slide": _named(slides, sizes),
        "organ": _named(organs, sizes),
        CELL_ID: pd.array(joined[CELL_ID], dtype="string[pyarrow]"),
        "row": joined["row"].to_numpy(),
        "x_px": joined["x_px"].to_numpy().astype(np.float64, copy=False),
        "y_px": joined["y_px"].to_numpy().astype(np.float64, copy=False),
        "class": _encoded(joined["class"]),
        "split": _encoded(joined["split"]),
    }
    return pd.DataFrame(frame, copy=False)


def _named(names: list[str], sizes: NDArray[np.int64]) -> pd.Categorical:
    """Return each table's name for all of its rows."""
    categories = sorted({name for name, size in zip(names, sizes, strict=True) if size})
    numbers = {name: number for number, name in enumerate(categories)}
    codes = np.array([numbers.get(name, -1) for name in names], np.int16)
    return pd.Categorical.from_codes(np.repeat(codes, sizes), categories=categories)


def _encoded(values: pa.ChunkedArray) -> pd.Categorical:
    """Return text as numbers of its sorted names."""
    encoded = values.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    categories = sorted(names)
    numbers = np.array([categories.index(name) for name in names], np.int16)
    return pd.Categorical.from_codes(numbers[encoded.indices.to_numpy()], categories=categories)


def _some(values: Iterable[Any], n: int = 3) -> str:
    shown = [str(value) for value in list(values)[: n + 1]]
    return ", ".join(shown[:n]) + (", ..." if len(shown) > n else "")


def _repeated(values: Sequence[Any]) -> list[str]:
    seen = pd.Series(list(values), dtype=object)
    return [str(value) for value in seen[seen.duplicated()].unique()]
