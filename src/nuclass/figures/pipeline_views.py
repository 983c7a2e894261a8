"""What the figure of the workflow shows of the study: pictures of one slide and one of its cells, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.names import CELL_ID, DROPPED, LABELLED, TEST, TRAIN, VAL
from nuclass.figures.labelling import chosen_markers
from nuclass.figures.labelling_panels import CellTypes

if TYPE_CHECKING:
    from nuclass.slides.evidence import Change
    from nuclass.slides.store import SlideStore
    from nuclass.xenium.reader import Bundle

PATHS = ("cells", "labels", "windows", "umap", "markers", "bundle")
"""Files that are read; all but the first two only where the slide has a bundle."""
_BATCH_COLUMNS = ("x_location", "y_location", "feature_name", "qv")
_THUMBNAIL_PX, _FIELD = 600, 1.5
"""Shorter side of the slide's picture, and side of the field of transcripts over that of the local window."""
_TYPES, _GENES_OF_TYPE = 6, 2
_MIN_QV = 20


@dataclass(frozen=True)
class Transcripts:
    """A field of the H&E: side in px of the slide; outlines of nuclei and transcripts (``x y gene``) in its px."""

    image: NDArray[np.uint8]
    side: float
    outlines: list[NDArray[np.float64]]
    points: pd.DataFrame


@dataclass(frozen=True)
class Views:
    """What is shown of a slide; a part that the study lacks is ``None`` or empty.

    Attributes
    ----------
    slide, organ
        Its name and organ.
    cells
        ``cell_id x_px y_px cluster cell_type class status source`` of its cells.
    umap
        ``umap_1 umap_2 cluster cell_type``.
    dots
        Of :func:`nuclass.figures.labelling.chosen_markers`, at most two genes a type.
    thumbnail, shape
        The slide, (h, w, 3), and its height and width in px.
    cell
        The cell whose windows are shown: a row of ``cells``.
    windows
        ``local`` and ``global`` picture of the cell.
    transcripts
        The field around the cell.
    """

    slide: str
    organ: str
    cells: pd.DataFrame
    umap: pd.DataFrame = field(default_factory=pd.DataFrame)
    dots: pd.DataFrame = field(default_factory=pd.DataFrame)
    thumbnail: NDArray[np.uint8] | None = None
    shape: tuple[int, int] | None = None
    cell: pd.Series[Any] | None = None
    windows: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    transcripts: Transcripts | None = None


def read_views(
    slide: str,
    organ: str,
    paths: Mapping[str, str | Path],
    windows: Mapping[str, int],
    types: CellTypes,
) -> Views:
    """Read what is shown of a slide.

    Parameters
    ----------
    slide, organ
        Its name and organ.
    paths
        ``cells labels``, and of a slide with a bundle also ``windows`` (its store) and ``umap markers bundle``.
    windows
        Sides of the ``local`` and the ``global`` window, px of the slide.
    types
        Order of the cell types.
    """
    from nuclass.slides.store import SlideStore

    cells = _cells(paths)
    if "bundle" not in paths:
        cell = choose_cell(cells, windows["global"], None)
        return Views(slide, organ, cells, cell=cell)
    umap = pd.read_parquet(paths["umap"]).merge(cells[[CELL_ID, "cluster", "cell_type"]], on=CELL_ID, how="inner")
    dots = _dots(paths["markers"], cells, types)
    side = round(_FIELD * windows["local"])
    with SlideStore(paths["windows"]) as store:
        shape = store.shape
        thumbnail = store.thumbnail(min(round(_THUMBNAIL_PX * max(shape) / min(shape)), 4 * _THUMBNAIL_PX))
        cell = choose_cell(cells, windows["global"], shape)
        pictures = _cut(store, cell, {**windows, "field": side})
    genes = set(dots.get("gene", ()))
    found = None if cell is None else _transcripts(paths["bundle"], cells, cell, pictures.pop("field"), genes)
    return Views(slide, organ, cells, umap, dots, thumbnail, shape, cell, pictures, found)


def choose_cell(cells: pd.DataFrame, side: int, shape: tuple[int, int] | None) -> pd.Series[Any] | None:
    """Return the cell to show: in the square of the window's side with the most classes, the nearest to its middle.

    Of squares with as many classes the one with the most cells. Only labelled cells with a class count; cells whose
    window leaves the slide are taken where there are no others.

    Parameters
    ----------
    cells
        ``x_px y_px class status``.
    side
        Of the global window, px.
    shape
        Height and width of the slide, px, where known.
    """
    good = cells[(cells["status"] == LABELLED) & (cells["class"] != "")]
    if shape is not None:
        height, width = shape
        inside = good["x_px"].between(side / 2, width - side / 2) & good["y_px"].between(side / 2, height - side / 2)
        good = good[inside] if inside.any() else good
    if good.empty:
        return None
    squares = [np.floor(good[c] / side).astype(int).rename(c) for c in ("x_px", "y_px")]
    counts = good.groupby(squares)["class"].agg(["nunique", "size"]).sort_values(["nunique", "size"], kind="stable")
    middle = (np.array(counts.index[-1]) + 0.5) * side
    return good.loc[np.hypot(good["x_px"] - middle[0], good["y_px"] - middle[1]).idxmin()]


def study_counts(composition: str | Path) -> dict[str, int]:
    """Count slides, organs, classes and cells of the study from ``slide organ role split class cells``."""
    table = pd.read_csv(composition)
    table = table[(table["cells"] > 0) & table["split"].isin([TRAIN, VAL, TEST])]
    training, cohorts = (table[table["role"] == role] for role in ("train", "cohort"))
    return {
        "training_slides": training["slide"].nunique(),
        "organs": training["organ"].nunique(),
        "classes": table["class"].nunique(),
        "train_cells": int(training.loc[training["split"] == TRAIN, "cells"].sum()),
        "val_cells": int(training.loc[training["split"] == VAL, "cells"].sum()),
        "test_cells": int(training.loc[training["split"] == TEST, "cells"].sum()),
        "cohorts": cohorts["slide"].nunique(),
        "cohort_cells": int(cohorts["cells"].sum()),
    }


def _cells(paths: Mapping[str, str | Path]) -> pd.DataFrame:
    labels = pd.read_parquet(paths["labels"], columns=[CELL_ID, "cluster", "cell_type", "class", "status", "source"])
    places = pd.read_parquet(paths["cells"])
    kept = [c for c in (CELL_ID, "x_px", "y_px", "x_um", "y_um") if c in places]
    joined = labels.merge(places[kept], on=CELL_ID, validate="one_to_one")
    return joined[joined["status"] != DROPPED].reset_index(drop=True)


def _dots(markers: str | Path, cells: pd.DataFrame, types: CellTypes) -> pd.DataFrame:
    """Return the two best markers of each of the most frequent types that are a class."""
    evidence = pd.read_csv(markers, keep_default_na=False, na_values={"log2_fold": "", "score": ""})
    good = cells[(cells["status"] == LABELLED) & (cells["class"] != "")]
    frequent = list(good["cell_type"].value_counts().index[:_TYPES])
    dots = chosen_markers(evidence, types.ordered(frequent))
    genes = dots.drop_duplicates("gene").sort_values("place")
    genes = genes[genes.groupby("of", sort=False).cumcount() < _GENES_OF_TYPE]["gene"].tolist()
    return dots[dots["gene"].isin(genes)].assign(place=lambda table: table["gene"].map(genes.index))


def _cut(store: SlideStore, cell: pd.Series[Any] | None, sides: Mapping[str, int]) -> dict[str, NDArray[np.uint8]]:
    if cell is None:
        return {}
    return {name: store.window(float(cell["x_px"]), float(cell["y_px"]), side)[0] for name, side in sides.items()}


def _transcripts(
    file: str | Path, cells: pd.DataFrame, cell: pd.Series[Any], image: NDArray[np.uint8], genes: set[str]
) -> Transcripts:
    """Return the field around a cell with the nuclei and the transcripts of some genes that lie in it."""
    from nuclass.slides.align import nuclei_of
    from nuclass.xenium.reader import read_bundle

    bundle, side = read_bundle(Path(file).parent), len(image)
    matrix = um_to_px(cells)
    origin = np.array([cell["x_px"], cell["y_px"]], dtype=float) - side / 2

    def place(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([xy, np.ones(len(xy))]) @ matrix - origin

    nuclei = nuclei_of(bundle).mapped(place)
    near = np.flatnonzero(((nuclei.centre > -side / 8) & (nuclei.centre < side * 9 / 8)).all(axis=1))
    points = _points(bundle, genes, place, side)
    return Transcripts(image, side, list(nuclei.polygons(near)), points)


def um_to_px(cells: pd.DataFrame) -> NDArray[np.float64]:
    """Return the affine matrix (3, 2) that takes ``[x_um, y_um, 1]`` of a slide's cells to ``x_px y_px``."""
    um = np.column_stack([cells[["x_um", "y_um"]].to_numpy(float), np.ones(len(cells))])
    solution: NDArray[np.float64] = np.linalg.lstsq(um, cells[["x_px", "y_px"]].to_numpy(float), rcond=None)[0]
    return solution


def _points(bundle: Bundle, genes: set[str], place: Change, side: int) -> pd.DataFrame:
    """Return the transcripts (``x y gene``, qv 20 or more) of these genes within the field."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [pd.DataFrame({"x": [], "y": [], "gene": []})]
    if not bundle.has_transcripts() or not genes:
        return parts[0]
    wanted = pa.array(sorted(genes), pa.string())
    for batch in bundle.transcript_batches(_BATCH_COLUMNS):
        good = batch.filter(pc.and_(pc.is_in(batch["feature_name"], wanted), pc.greater_equal(batch["qv"], _MIN_QV)))
        um = np.column_stack([good[name].to_numpy() for name in _BATCH_COLUMNS[:2]]).astype(float)
        x, y = place(um).T
        found = pd.DataFrame({"x": x, "y": y, "gene": good["feature_name"].to_pylist()})
        parts.append(found[found["x"].between(0, side) & found["y"].between(0, side)])
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
