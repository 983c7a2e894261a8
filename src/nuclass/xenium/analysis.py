"""The clusters that the analysis of a bundle found, from whichever of its files is there."""

from __future__ import annotations

import re
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.xenium import tables
from nuclass.xenium.cells_zarr import open_zarr

if TYPE_CHECKING:
    from nuclass.xenium.reader import Bundle

ANALYSIS_ZARR = "analysis.zarr.zip"
_MEMBER = re.compile(r"(?:^|/)clustering/([^/]+)/clusters\.csv$")
_PREFIX = "gene_expression_"


def clusterings(bundle: Bundle) -> list[str]:
    """Return the names of the clusterings of a bundle, such as ``graphclust`` and ``kmeans_2_clusters``."""
    return sorted(name.removeprefix(_PREFIX) for name in _found(bundle)[1])


def read_clusters(bundle: Bundle, name: str = "graphclust") -> pd.Series[Any]:
    """Return the cluster of each cell.

    From ``analysis/clustering/*/clusters.csv``, the same in ``analysis.tar.gz``, or ``analysis.zarr.zip``.

    Parameters
    ----------
    bundle
        The bundle.
    name
        The clustering, with or without ``gene_expression_``.

    Returns
    -------
    Int64 numbers from 1 by cell id (index ``cell_id``), in the order of the cells table; ``<NA>`` for cells
    without a cluster, as those without counts are.

    Raises
    ------
    UserError
        There is no analysis, no such clustering, or a file is broken or of other cells.
    """
    file, names = _found(bundle)
    chosen = next((n for n in names if n.removeprefix(_PREFIX) == name.removeprefix(_PREFIX)), None)
    if chosen is None:
        valid = [n.removeprefix(_PREFIX) for n in names]
        raise UserError(
            f"The bundle has no clustering '{name}'.{closest(name, valid)}",
            where=file,
            expected=", ".join(sorted(valid)),
        )
    cells = bundle.cells()["cell_id"]
    if file.name == ANALYSIS_ZARR:
        return _from_zarr(file, chosen, cells)
    archived = file.name.endswith(".tar.gz")
    member = names[chosen]
    frame = _from_tar(file, member) if archived else tables.load(Path(member), ["Barcode", "Cluster"])
    frame["Barcode"] = tables.as_text(frame["Barcode"])
    unknown = ~frame["Barcode"].isin(cells)
    if unknown.any():
        raise UserError(
            "The clusters are of cells that the bundle does not have",
            where=f"{file}, clustering {chosen}",
            found=f"{frame['Barcode'][unknown].iloc[0]} ({int(unknown.sum())} of {len(frame)})",
            expected="the ids of the cells table",
            fix="take all files from the same run of the analysis",
        )
    numbers = frame.drop_duplicates("Barcode").set_index("Barcode")["Cluster"]
    return _series(cells, cells.map(numbers).to_numpy(np.float64, na_value=np.nan))


def _found(bundle: Bundle) -> tuple[Path, dict[str, str]]:
    """Return the file or folder of the analysis, and the names of its clusterings with their members."""
    folder, archive, zarr_zip = (bundle.folder / n for n in ("analysis", "analysis.tar.gz", ANALYSIS_ZARR))
    if (folder / "clustering").is_dir():
        return folder, {f.parent.name: str(f) for f in sorted(folder.glob("clustering/*/clusters.csv"))}
    if archive.is_file():
        try:
            with tarfile.open(archive) as members:
                found = {m[1]: n for n in members.getnames() if (m := _MEMBER.search(n))}
        except (tarfile.TarError, OSError, EOFError) as error:
            raise tables.broken(archive, error, "a gzipped tar archive") from error
        return archive, found
    if zarr_zip.is_file():
        with open_zarr(zarr_zip) as root:
            return zarr_zip, {n: str(i) for i, n in enumerate(root["cell_groups"].attrs["grouping_names"])}
    raise UserError(
        "The bundle has no analysis",
        where=bundle.folder,
        found=f"no analysis, analysis.tar.gz or {ANALYSIS_ZARR}",
        fix="copy one of them from the instrument's output",
    )


def _from_tar(archive: Path, member: str) -> pd.DataFrame:
    try:
        with tarfile.open(archive) as members, tables.readable(archive):
            stream = members.extractfile(member)
            frame = pd.read_csv(stream) if stream is not None else pd.DataFrame()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise tables.broken(archive, error, "a gzipped tar archive") from error
    if missing := {"Barcode", "Cluster"} - set(frame.columns):
        raise UserError(
            "A table of the bundle lacks columns",
            where=f"{archive}, {member}",
            found=", ".join(frame.columns),
            expected=", ".join(sorted(missing)),
        )
    return frame


def _from_zarr(file: Path, name: str, cells: pd.Series[Any]) -> pd.Series[Any]:
    with open_zarr(file) as root:
        groups = root["cell_groups"]
        index = list(groups.attrs["grouping_names"]).index(name)
        n_groups = len(groups.attrs["group_names"][index])
        indices, pointer = groups[str(index)]["indices"][:], groups[str(index)]["indptr"][:]
    number = np.full(len(cells), np.nan)
    for cluster, rows in enumerate(group_rows(indices, pointer, n_groups), 1):
        if len(rows) and rows.max() >= len(cells):
            raise UserError(
                "The clusters are of cells that the bundle does not have",
                where=f"{file}, clustering {name}",
                found=f"cell {int(rows.max()) + 1}",
                expected=f"at most {len(cells)}",
                fix="take all files from the same run of the analysis",
            )
        number[rows] = cluster
    return _series(cells, number)


def group_rows(
    indices: npt.NDArray[np.integer], pointer: npt.NDArray[np.integer], n_groups: int
) -> list[npt.NDArray[np.int64]]:
    """Return the cells of each group of an analysis.zarr.

    Parameters
    ----------
    indices
        (N,) cells, group after group, rising within each; padded with zeros to the number of cells.
    pointer
        The row where each group begins; of ``n_groups + 1`` numbers the last is where the last one ends.
    n_groups
        The number of groups.

    Notes
    -----
    Where only the beginnings are written, the last group ends where its cells stop to rise: cell 0 can
    only be its first, so a zero after that is padding.
    """
    cells: npt.NDArray[np.int64] = np.asarray(indices, np.int64)
    pointer = np.asarray(pointer, np.int64)
    if len(pointer) > n_groups:
        bounds = pointer[: n_groups + 1]
    else:
        last = cells[pointer[-1] :] if len(pointer) else cells[:0]
        padding = np.flatnonzero(last[1:] == 0)
        end = 1 + int(padding[0]) if len(padding) else len(last)
        if len(last) and last[0] == 0 and len(pointer) > 1 and (cells[: pointer[-1]] == 0).any():
            end = 0
        bounds = np.append(pointer, (pointer[-1] if len(pointer) else 0) + end)
    return [cells[a:b] for a, b in pairwise(bounds.tolist())]


def _series(cells: pd.Series[Any], number: npt.NDArray[np.float64]) -> pd.Series[Any]:
    known = np.isfinite(number)
    values = pd.array(np.where(known, number, 0).astype(np.int64), dtype="Int64")
    return pd.Series(values, index=pd.Index(cells, name="cell_id"), name="cluster").mask(~known)
