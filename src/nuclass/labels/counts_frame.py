"""A table of counts as text or Parquet: which axis are the genes, which column the ids, which no gene at all."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from nuclass.core.bundle_source import is_web_page
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger

_log = get_logger(__name__)

PLACES = (("x_um", "y_um"), ("x_centroid", "y_centroid"))
"""Names of columns that hold cells' places, in micrometres."""
_IDS = ("cellid", "cellids", "barcode", "barcodes", "cellbarcode", "cell", "cells")
_INDEX = ("", "index", "id", "unnamed0", "rownames", *_IDS)
_NO_GENE = re.compile(
    r"(?i)([xyz]|[xyz][ _.-].*|.*[ _.-][xyz]|(n|pct|log1p|total|percent)[ _.].*|n(count|feature|umi|gene)s?([_.].*)?|"
    r".*counts?|.*area|umap.*|t-?sne.*|pca?[ _.-]\d+|pc\d+|leiden.*|louvain.*|"
    r"(seurat_)?clusters?|batch|sample|patient|fov|umis?|age|volume|.*score)"
)
_CONTROL = re.compile(
    r"(NegControl|NegPrb|Negative\d|SystemControl|FalseCode|BLANK_|Blank-|UnassignedCodeword|DeprecatedCodeword|"
    r"antisense_|Intergenic_Region)"
)
_LONG = 2


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn what readers raise on a broken file into a :class:`UserError`."""
    import pyarrow as pa
    from anndata._io.specs.registry import IORegistryError

    broken = (
        *(OSError, EOFError, ValueError, KeyError, TypeError, IndexError, RuntimeError, AttributeError),
        *(zlib.error, csv.Error, pa.ArrowException, IORegistryError),
    )
    try:
        yield
    except broken as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            "The table of counts cannot be read",
            where=file,
            found=lines[0],
            expected="a whole file of the kind that its ending names, text in UTF-8",
            fix="write or download the file again",
        ) from error


def is_control(name: str) -> bool:
    """Return whether a feature is a control of the assay and no gene."""
    return _CONTROL.match(name) is not None


def hits(names: Collection[str], known: Collection[str]) -> tuple[int, int]:
    """Return how many names are known genes, as they are spelt and in capitals."""
    upper = {gene.upper() for gene in known}
    names = set(map(str, names))
    return len(names & set(known)), len({name.upper() for name in names} & upper)


def read_frame(file: Path, known: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a text or Parquet table with cells or genes in rows.

    Returns
    -------
    Numbers, cells x genes with the ids as index, and the places of the cells (``x_um``, ``y_um``, or no column).

    Raises
    ------
    UserError
        Where the file is broken, holds no known gene, no ids, one row a gene of a cell, or text instead of numbers.
    """
    frame = _parquet(file) if file.suffix.lower() == ".parquet" else _text(file)
    if frame.shape[1] and not len(frame):
        raise UserError("A table of counts holds no row", where=file, found=f"{frame.shape[1]} columns and no row")
    inside = hits(frame.columns, known)
    text = [k for k in range(frame.shape[1]) if not is_numeric_dtype(frame.iloc[:, k])]
    down = {k: hits(frame.iloc[:, k].dropna().unique(), known) for k in text}
    names = max(down, key=lambda k: down[k], default=-1)
    if names >= 0 and down[names] > inside:
        return _genes_in_rows(frame, names, file), pd.DataFrame(index=frame.columns[:0])
    if not inside[1]:
        raise no_gene(file, list(frame.columns), [str(v) for v in frame.iloc[:, 0].head(3)] if frame.shape[1] else [])
    return _cells_in_rows(frame, file, known)


def no_gene(file: Path, names: list[str], others: list[str]) -> UserError:
    """Return the error of a table without any gene of the marker table."""
    fix = "name the genes by their symbols"
    if any(re.match(r"ENS[A-Z]*G\d{6,}", name) for name in (*names, *others)):
        fix += ": these are Ensembl ids"
    elif not names:
        fix = "check that the file holds a table"
    shown = f"{len(names)} columns, such as {', '.join(names[1:4] or names)}" if names else "no columns"
    shown += f"; rows such as {', '.join(others)}" if others else ""
    return UserError(
        "A table of counts holds no gene of the marker table",
        where=file,
        found=shown,
        expected="human gene names, such as CD3E, as names of the columns or of the rows",
        fix=fix,
    )


def _genes_in_rows(frame: pd.DataFrame, names: int, file: Path) -> pd.DataFrame:
    genes = frame.iloc[:, names].astype(str)
    if len(genes) > _LONG * genes.nunique():
        raise UserError(
            "A table of counts has more than one row a gene",
            where=file,
            found=f"{len(genes):,} rows of {genes.nunique():,} genes: one row a transcript, or a gene of a cell?",
            expected="cells x genes, or genes x cells",
            fix="spread it out, with one row a cell and one column a gene (pandas: pivot_table)",
        )
    rest = frame.iloc[:, [k for k in range(frame.shape[1]) if k != names]]
    numbers = rest.loc[:, [is_numeric_dtype(kind) and not is_bool_dtype(kind) for kind in rest.dtypes]]
    _left_out(file, [name for name in rest if name not in numbers], "cells")
    table = numbers.T
    table.columns = pd.Index(genes)
    return table


def _cells_in_rows(frame: pd.DataFrame, file: Path, known: Collection[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    ids = _id_column(frame, file, known)
    cells = _as_text(frame.pop(ids))
    places = pd.DataFrame(index=pd.Index(cells))
    for pair in PLACES:
        if set(pair) <= set(frame):
            both = [pd.to_numeric(frame.pop(name), errors="coerce").to_numpy(float) for name in pair]
            places = places.assign(x_um=both[0], y_um=both[1]) if places.empty or "x_um" not in places else places
    spelt = [name for name in frame if name in known]
    human = 2 * sum(name == name.upper() for name in spelt) >= len(spelt)
    upper = {gene.upper() for gene in known}
    genes = [name for name in frame if name in known or name.upper() in upper or _may_be_gene(name, frame, human)]
    _need_numbers(frame[genes], file)
    chosen = set(genes)
    _left_out(file, [name for name in frame if name not in chosen and _plain(name) not in _INDEX], "genes")
    table = frame[genes]
    table.index = pd.Index(cells)
    return table, places


def _may_be_gene(name: str, frame: pd.DataFrame, human: bool) -> bool:
    if not is_numeric_dtype(frame[name]) or is_bool_dtype(frame[name]) or _NO_GENE.fullmatch(name) or is_control(name):
        return False
    plain = name.replace("orf", "")
    return not human or plain == plain.upper()


def _need_numbers(table: pd.DataFrame, file: Path) -> None:
    for name in table:
        if not is_numeric_dtype(table[name]):
            wrong = table.loc[pd.to_numeric(table[name], errors="coerce").isna(), name]
            raise UserError(
                "A table of counts holds text where counts belong",
                where=f"{file}, column {name}",
                found=repr(str(wrong.iloc[0])) if len(wrong) else str(table[name].dtype),
                expected="whole numbers from 0: transcripts of the gene in each cell",
                fix="correct the column",
            )


def _id_column(frame: pd.DataFrame, file: Path, known: Collection[str]) -> str:
    named = [name for name in frame if _plain(name) in _IDS]
    if named:
        return str(named[0])
    first = str(frame.columns[0])
    numbers = pd.to_numeric(frame[first], errors="coerce").notna().all() and _plain(first) not in _INDEX
    places = {name for pair in PLACES for name in pair}
    if first in known or first in places or (numbers and not frame[first].is_unique):
        raise UserError(
            "A table of counts has no ids of its cells",
            where=file,
            found=f"the first column is '{first}'" + (", a gene" if first in known else ""),
            expected="ids of the cells, or names of the genes, in the first column",
            fix="write the ids of the cells in a first column 'cell_id'",
        )
    return first


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _as_text(ids: pd.Series) -> np.ndarray:
    """Return ids as text; those that were read as numbers with a point are whole ones."""
    if is_numeric_dtype(ids) and not is_bool_dtype(ids) and np.array_equal(ids.dropna(), ids.dropna().astype(int)):
        ids = ids.astype("Int64")
    ids = ids.map(lambda value: value.decode() if isinstance(value, bytes) else value)
    return ids.astype("string").fillna("").to_numpy(object)


def _left_out(file: Path, names: list[str], what: str) -> None:
    if names:
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        _log.warning("%s: columns that are no %s are left out: %s%s", file, what, ", ".join(names[:10]), more)


def _parquet(file: Path) -> pd.DataFrame:
    with readable(file):
        frame = pd.read_parquet(file)
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index(names=str(frame.index.name or ""))
    frame.columns = frame.columns.astype(str)
    for name in frame.columns[[isinstance(kind, pd.CategoricalDtype) for kind in frame.dtypes]]:
        frame[name] = frame[name].astype(object)
    return frame


def _text(file: Path) -> pd.DataFrame:
    """Read a text table; its separator is the sign that divides its first line into most parts."""
    with readable(file), file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    with readable(file), (gzip.open if packed else open)(file, "rb") as stream:
        head = [stream.readline() for _ in range(2)]
    if is_web_page(head[0]):
        raise UserError("The table of counts is a web page", where=file, fix="download the file itself")
    with readable(file):
        lines = [line.decode("utf-8-sig").rstrip("\r\n") for line in head]
        if not lines[0].strip():
            raise UserError("The table of counts is empty", where=file, expected="a line of names, then rows")
        mark = max("\t,; ", key=lambda sign: len(_cells(lines[0], sign)))
        names, first = _cells(lines[0], mark), _cells(lines[1], mark)
    if len(first) == len(names) + 1:
        # R leaves the name of the row names out.
        names.insert(0, "")
    if len(first) > len(names):
        raise UserError(
            "A row of a table of counts has more values than there are columns",
            where=f"{file}, line 2",
            found=f"{len(first)} values",
            expected=f"{len(names)}, as in line 1",
            fix="write the file again",
        )
    _need_single(names, file)
    ids = {name: str for k, name in enumerate(names) if k == 0 or _plain(name) in _IDS}
    with readable(file):
        return pd.read_csv(
            file,
            sep=mark,
            header=None,
            names=names,
            skiprows=1,
            dtype=ids,
            decimal="," if mark == ";" else ".",
            compression="gzip" if packed else None,
            low_memory=False,
        )


def _cells(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])]


def _need_single(names: list[str], file: Path) -> None:
    twice = [name for k, name in enumerate(names) if name in names[:k]] if len(set(names)) < len(names) else []
    if twice:
        raise UserError(
            "A column stands twice in a table of counts",
            where=file,
            found=f"{len(twice)} doubled, such as '{twice[0]}'",
            expected="each gene, or each cell, once",
            fix="delete one of the two, or rename it",
        )
