"""A finished run as the writers of outputs read it: its facts, its table in parts, its outlines, its colours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.apply.out_rings import Rings
from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.names import ABSTAINED, CELL_ID, PROBABILITY_PREFIX
from nuclass.core.own_files import own_file

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.figures.style import Classes

TABLE, OUTLINES, FACTS = "predictions.parquet", "outlines.parquet", "run.json"
TYPED, LEFT_OUT = "typed", "left_out"
STATES = (TYPED, ABSTAINED, LEFT_OUT)
UNCERTAIN = "Uncertain"
"""What an abstained cell is called where a class would stand."""
PLACES = ("x_he", "y_he", "x_um", "y_um", "x_px", "y_px")
_COLUMNS = (CELL_ID, *PLACES, "status", "class", "prediction", "confidence")
_ROWS = 20_000
_AGAIN = "run nuclass predict again into this folder"


@dataclass(frozen=True)
class Run:
    """The folder of a finished run.

    Attributes
    ----------
    folder
        With ``predictions.parquet``, ``run.json`` and, where the positions have outlines, ``outlines.parquet``.
    facts
        What ``run.json`` says.
    columns
        Of the table, in its order.
    sheet
        Names, order and colours of the classes.
    """

    folder: Path
    facts: dict[str, Any]
    columns: tuple[str, ...]
    sheet: Classes

    @classmethod
    def read(cls, folder: str | Path, classes: str | Path) -> Run:
        """Read a run's facts and the names of its columns.

        Raises
        ------
        UserError
            If a file is missing or cut off, or lacks what the outputs need.
        """
        from nuclass.figures.style import Classes

        root = Path(folder)
        if not (root / TABLE).is_file():
            raise UserError("This folder holds no predictions", where=root, expected=TABLE, fix=_AGAIN)
        facts = read_json(root / FACTS)
        columns = _column_names(root / TABLE)
        missing = [name for name in _COLUMNS if name not in columns]
        if missing:
            raise UserError("The predictions lack columns", where=root / TABLE, expected=missing, fix=_AGAIN)
        if not any(name.startswith(PROBABILITY_PREFIX) for name in columns):
            raise UserError(
                "The predictions hold no probabilities",
                where=root / TABLE,
                expected=f"{PROBABILITY_PREFIX}<class>",
                fix=_AGAIN,
            )
        lost = [name for name in ("slide", "model", "counts", "composition") if name not in facts]
        if lost:
            raise UserError("The record of the run lacks entries", where=root / FACTS, expected=lost, fix=_AGAIN)
        return cls(root, facts, columns, Classes.read(classes))

    @property
    def slide(self) -> str:
        """Name of the slide."""
        return str(self.facts["slide"])

    @property
    def classes(self) -> list[str]:
        """Classes of the model, in the order of the probability columns."""
        return [name.removeprefix(PROBABILITY_PREFIX) for name in self.columns if name.startswith(PROBABILITY_PREFIX)]

    @property
    def style(self) -> Path:
        """The style sheet of the figures."""
        return own_file("resources/style/nuclass.mplstyle")

    @property
    def has_outlines(self) -> bool:
        """Whether the positions came with outlines."""
        return (self.folder / OUTLINES).is_file()

    @property
    def has_gate(self) -> bool:
        """Whether the model is a fused one, whose gate stands in the table."""
        return "gate" in self.columns

    def colours(self) -> dict[str, str]:
        """Return the colour of each class as ``#rrggbb``: the sheet's, or one of its own for a class it lacks."""
        from nuclass.figures.points import cluster_colour

        found: dict[str, str] = {}
        for name in self.sheet.ordered(self.classes):
            own = self.sheet.colour(name) if name in self.sheet.table.index else ""
            known = re.fullmatch("#[0-9A-Fa-f]{6}", own)
            found[name] = own if known else cluster_colour(len(found))
        return found

    def table(self, columns: Sequence[str] | None = None, *, shown: bool = False) -> pd.DataFrame:
        """Read the table, or some of its columns; with ``shown`` without the cells that were left out."""
        import pandas as pd

        frame = pd.read_parquet(self.folder / TABLE, columns=None if columns is None else list(columns))
        return frame[(frame["status"] != LEFT_OUT).to_numpy()].reset_index(drop=True) if shown else frame

    def parts(self, rows: int = _ROWS) -> Iterator[pd.DataFrame]:
        """Yield the table in parts of at most ``rows`` cells, so that memory does not grow with the slide."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.folder / TABLE) as stored:
            for batch in _batches(stored, rows):
                yield batch.to_pandas()

    def parts_with_outlines(self, rows: int = _ROWS) -> Iterator[tuple[pd.DataFrame, Rings | None]]:
        """Yield the table in parts, each with its outlines; None where the positions have none.

        Raises
        ------
        UserError
            If the outlines are not those of the table's cells.
        """
        if not self.has_outlines:
            for frame in self.parts(rows):
                yield frame, None
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / OUTLINES
        with pq.ParquetFile(path) as stored:
            source = _batches(stored, rows, [CELL_ID, "x_he", "y_he"])
            rest = pa.Table.from_batches([], schema=stored.schema_arrow)
            for frame in self.parts(rows):
                while rest.num_rows < len(frame) and (batch := next(source, None)) is not None:
                    more = pa.Table.from_batches([batch])
                    rest = pa.concat_tables([rest, more]) if rest.num_rows else more
                part, rest = rest.slice(0, len(frame)), rest.slice(len(frame))
                if part.column(CELL_ID).to_pylist() != frame[CELL_ID].tolist():
                    raise UserError(
                        "The outlines are not those of the predictions",
                        where=path,
                        found=f"other cells than in {TABLE}, or another order",
                        fix=_AGAIN,
                    )
                yield frame, _rings(part.column("x_he"), part.column("y_he"), path)


def rgb(colour: str) -> list[int]:
    """Return red, green and blue, 0 to 255, of ``#rrggbb``."""
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def _column_names(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise UserError("The predictions cannot be read", where=path, found=str(error), fix=_AGAIN) from error


def _batches(stored: Any, rows: int, columns: list[str] | None = None) -> Iterator[Any]:
    """Yield a Parquet file in parts, group by group: in one go all that was read of the file would stay in memory."""
    for group in range(stored.num_row_groups):
        yield from stored.iter_batches(rows, row_groups=[group], columns=columns)


def _rings(x: Any, y: Any, path: Path) -> Rings:
    """Return the rings of two columns of lists (pyarrow)."""
    import pyarrow.compute as pc

    lengths = [pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64) for column in (x, y)]
    if not np.array_equal(*lengths):
        raise UserError("An outline has more x than y, or fewer", where=path, fix=_AGAIN)
    vertices = [np.asarray(pc.list_flatten(column).to_numpy(), dtype=np.float64) for column in (x, y)]
    offsets = np.concatenate([[0], np.cumsum(lengths[0])]).astype(np.int64)
    return Rings(np.stack(vertices, axis=1), offsets)
