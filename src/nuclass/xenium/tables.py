"""The tables of a bundle, Parquet or CSV, read by column or piece by piece, with text as text in every version."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.core.bundle_source import is_web_page
from nuclass.core.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet", ".csv.gz", ".csv")
COPY_AGAIN = "copy the file again from the bundle"


def find_file(folder: Path, stem: str, endings: Sequence[str] = ENDINGS) -> Path | None:
    """Return the first file ``stem + ending`` of a folder that exists."""
    return next((file for ending in endings if (file := folder / f"{stem}{ending}").is_file()), None)


def table_columns(file: Path) -> list[str]:
    """Return the names of a table's columns; only its head or foot is read."""
    with readable(file):
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return [name for name in pq.read_schema(file).names if name != "__index_level_0__"]
        # A page is a table of one column to the parser.
        if file.suffix == ".csv" and is_web_page(_head(file)):
            raise broken(file, ValueError(), "CSV")
        return [str(name) for name in pd.read_csv(file, nrows=0).columns]


def load(file: Path, needed: Sequence[str], wanted: Sequence[str] = (), repeated: Sequence[str] = ()) -> pd.DataFrame:
    """Read columns of a table: all of ``needed``, and those of ``wanted`` that are there.

    Those of ``repeated`` hold few texts many times and come as categories of str: an object for each row would
    cost more than all the rest.

    Raises
    ------
    UserError
        The file cannot be read, or a needed column is missing.
    """
    chosen = choose(file, needed, wanted)
    with readable(file):
        if file.suffix == ".parquet":
            frame = _load_parquet(file, chosen, repeated)
        else:
            frame = pd.read_csv(file, usecols=chosen)[chosen]
    for name in repeated:
        frame[name] = as_categories(frame[name])
    return frame


def _load_parquet(file: Path, columns: Sequence[str], repeated: Sequence[str]) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = pq.read_schema(file)
    coded = [name for name in repeated if pa.types.is_string(kinds.field(name).type)]
    with pq.ParquetFile(file, read_dictionary=coded) as table:
        content = table.read(list(columns)).select(list(columns)).unify_dictionaries()
    # What pandas noted of its index is of no use here, and restoring it costs copies.
    return content.to_pandas(ignore_metadata=True, split_blocks=True, self_destruct=True)


def batches(file: Path, columns: Sequence[str], rows: int = 1 << 20) -> Iterator[pa.Table]:
    """Yield a table in pieces of at most ``rows`` rows; memory does not grow with the table.

    Arrow tables, because a Python object for each text would cost more than all the rest.
    """
    import pyarrow as pa

    chosen = list(columns)
    with readable(file):
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            # Threads and the buffer read ahead without a limit.
            with pq.ParquetFile(file, pre_buffer=False) as table:
                for batch in table.iter_batches(rows, columns=chosen, use_threads=False):
                    yield pa.Table.from_batches([batch]).select(chosen)
            return
        with pd.read_csv(file, usecols=chosen, chunksize=rows) as pieces:
            for piece in pieces:
                yield pa.Table.from_pandas(piece[chosen], preserve_index=False)


def as_arrow_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return identifiers or names as Arrow strings, whether written as int, bytes, string or dictionary."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = column.cast(pa.int64())
    return column.cast(pa.string())


def choose(file: Path, needed: Sequence[str], wanted: Sequence[str] = ()) -> list[str]:
    """Return the columns to read, in the order asked for; a missing needed one is a :class:`UserError`."""
    present = table_columns(file)
    missing = [name for name in needed if name not in present]
    if missing:
        raise UserError(
            "A table of the bundle lacks columns",
            where=file,
            found=", ".join(map(str, present)) or "no columns",
            expected=", ".join(missing),
            fix="take the table from a Xenium bundle, without renaming its columns",
        )
    return [*needed, *(name for name in wanted if name in present and name not in needed)]


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn the errors of a broken table into a :class:`UserError` that names the file."""
    import pyarrow as pa

    try:
        yield
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        zlib.error,
        UnicodeDecodeError,
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
    ) as error:
        raise broken(file, error, "Parquet" if file.suffix == ".parquet" else "CSV") from error


def _head(file: Path) -> bytes:
    if not file.is_file():
        return b""
    with file.open("rb") as stream:
        return stream.read(400)


def broken(file: Path, error: BaseException, expected: str) -> UserError:
    """Return the error for a file that cannot be read; a saved web page is called one."""
    head = _head(file)
    if is_web_page(head):
        return UserError(
            "A file of the bundle is a web page",
            where=file,
            found=head.decode("utf-8", "replace").strip().splitlines()[0][:80],
            expected=expected,
            fix="download it again; the server answered with a page, often because an address has expired",
        )
    # KeyError quotes its text.
    text = str(error).strip("\"'")
    return UserError(
        "A table of the bundle cannot be read"
        if expected in ("Parquet", "CSV")
        else "A file of the bundle cannot be read",
        where=file,
        found=text.splitlines()[0] if text else type(error).__name__,
        expected=expected,
        fix=f"{COPY_AGAIN}; it may be cut off",
    )


def as_text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return identifiers or names as str, whether written as int, whole float, bytes, str or category.

    Categories stay categories, so that a long column of few names stays small.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.rename_categories(as_text(pd.Series(column.cat.categories)).to_numpy())
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        return column.astype("Int64").astype("object").astype(str)
    if column.dtype.kind in "iu":
        return column.astype(str)
    if pd.api.types.infer_dtype(column, skipna=True) == "bytes":
        return column.str.decode("utf-8")
    return column.astype(str)


def as_categories(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return identifiers or names as categories of str, see :func:`as_text`."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return as_text(column)
    codes, values = pd.factorize(column)
    names = as_text(pd.Series(values)).to_numpy()
    return pd.Series(pd.Categorical.from_codes(codes, names), index=column.index, name=column.name)


def finite(file: Path, frame: pd.DataFrame, columns: Sequence[str], row_name: Callable[[int], str]) -> None:
    """Check that coordinates are finite; the first that is not is named.

    Parameters
    ----------
    file, frame, columns
        The table, its content and what to check.
    row_name
        Gives the words for a row in the message.
    """
    for name in columns:
        column = frame[name]
        # Millions of vertices: floats are looked at as they are.
        values = column.to_numpy() if column.dtype.kind == "f" else to_number(file, column, name, row_name)
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                "A coordinate of the bundle is not a number",
                where=f"{file}, column {name}, {row_name(row)}",
                found=f"{values[row]} ({int(bad.sum())} of {len(values)} rows)",
                expected="micrometres",
                fix=COPY_AGAIN,
            )


def to_number(file: Path, column: pd.Series[Any], name: str, row_name: Callable[[int], str]) -> npt.NDArray[np.float64]:
    """Return a column as float64; text in it is a :class:`UserError`."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    text = np.isnan(values) & column.notna().to_numpy()
    if text.any() and column.dtype.kind not in "fiu":
        row = int(np.argmax(text))
        raise UserError(
            "A value of the bundle is not a number",
            where=f"{file}, column {name}, {row_name(row)}",
            found=repr(column.iloc[row]),
            fix=COPY_AGAIN,
        )
    return np.asarray(values, np.float64)


def to_count(file: Path, column: pd.Series[Any], name: str, row_name: Callable[[int], str]) -> npt.NDArray[np.int64]:
    """Return a column as int64; anything but whole numbers from 0 is a :class:`UserError`."""
    values = to_number(file, column, name, row_name)
    bad = ~((values >= 0) & (values % 1 == 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            "A count of the bundle is not a whole number",
            where=f"{file}, column {name}, {row_name(row)}",
            found=values[row],
            expected="0 or more",
            fix=COPY_AGAIN,
        )
    return values.astype(np.int64)
