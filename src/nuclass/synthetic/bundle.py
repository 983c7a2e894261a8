"""Write a Xenium bundle in the layout of XOA 3.0.0 from arrays, the same bytes for the same input.

The layout follows a real bundle of XOA 3.0.0.15 file by file; the identities between its files hold:
``transcript_counts`` is the number of a cell's transcripts with qv >= 20 that are genes,
``total_counts`` the number with qv >= 20, and the feature matrix counts the same transcripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.synthetic import bundle_files as files
from nuclass.synthetic.identifiers import cell_ids, decode_cell_ids, derived_uuid, encode_cell_id
from nuclass.synthetic.images import halve, write_he, write_morphology
from nuclass.synthetic.raster import area_and_centroid, rasterize
from nuclass.xenium.inventory import INVENTORY, write_inventory

__all__ = [
    "BundleData",
    "RunInfo",
    "cell_ids",
    "control_features",
    "derived_uuid",
    "encode_cell_id",
    "write_bundle",
    "write_he",
]

Floats = npt.NDArray[np.floating]
Plane = npt.NDArray[np.uint16]

MIN_QV = 20.0
# category of a control -> (feature type of the matrix, column of cells.parquet), in the matrix's order
CONTROL_CATEGORIES = {
    "negative_control_probe": ("Negative Control Probe", "control_probe_counts"),
    "genomic_control_probe": ("Genomic Control", "genomic_control_counts"),
    "negative_control_codeword": ("Negative Control Codeword", "control_codeword_counts"),
    "unassigned_codeword": ("Unassigned Codeword", "unassigned_codeword_counts"),
    "deprecated_codeword": ("Deprecated Codeword", "deprecated_codeword_counts"),
}
_CONTROL_NAMES = {
    "negative_control_probe": ("NegControlProbe_{:05d}", 20),
    "genomic_control_probe": ("Intergenic_Region_{0:d}_part_1", 12),
    "negative_control_codeword": ("NegControlCodeword_{:05d}", 40),
    "unassigned_codeword": ("UnassignedCodeword_{:04d}", 80),
    "deprecated_codeword": ("DeprecatedCodeword_{:04d}", 6),
}


@dataclass(frozen=True)
class RunInfo:
    """What a run says about itself in experiment.xenium; free text without effect on the data."""

    run_name: str = "Synthetic study"
    run_start_time: str = "2025-01-01T00:00:00Z"
    region_name: str = "Region_1"
    cassette_name: str = "synthetic"
    preservation_method: str = "ffpe"
    panel_name: str = "Synthetic Human Multi-Tissue Panel"
    panel_design_id: str = "nuclass_synthetic_v1"
    organism: str = "Human"
    genome: str = "Unknown"
    thickness_um: float = 9.0


@dataclass
class BundleData:
    """Everything of one slide that a bundle states. Lengths in micrometres, origin at the morphology's top left.

    Attributes
    ----------
    cell_id
        N ids such as ``aaaabcde-1``; see :func:`cell_ids`.
    cell_polygons
        (N, 25, 2) closed outlines (x, y), first vertex repeated at the end. Any number of vertices works.
    nucleus_polygons
        (N, 25, 2) closed; a row of NaN for a cell without a nucleus.
    genes
        Columns ``id`` (such as ENSG...) and ``name``, one row a gene of the panel; or names, which are then the ids.
    transcripts
        Columns ``x_um y_um z_um feature_name qv`` and optionally ``cell`` (row of the cell, -1 for none;
        otherwise the cell whose mask holds the transcript), ``overlaps_nucleus`` (otherwise from the
        nucleus mask) and ``nucleus_distance`` (otherwise the distance to the nearest nucleus outline).
    morphology
        DAPI in focus (H, W) uint16 at ``pixel_size``.
    stack
        The DAPI stack: (Z, H, W), or an iterable of Z planes, or a function that gives one; by default a
        dim, unsharp plane and the plane in focus.
    n_planes
        Z; needed only where ``stack`` does not tell it by ``len``.
    controls
        Columns ``name`` and ``category`` (a key of ``CONTROL_CATEGORIES``), or category -> names; by default
        :func:`control_features`.
    width_um, height_um
        The region; by default that of the image.
    extra_nuclei, extra_nucleus_cell
        Further nuclei (M, 25, 2) of cells with several, and the rows of those cells.
    segmentation_method
        One text for all cells.
    organ, info
        Texts of the run.
    seed, pixel_size, z_step
        The seed of all identifiers; micrometres.
    """

    cell_id: list[str]
    cell_polygons: Floats
    nucleus_polygons: Floats
    genes: pd.DataFrame | Sequence[str]
    transcripts: pd.DataFrame
    morphology: Plane
    stack: npt.NDArray[np.uint16] | Iterable[Plane] | Callable[[], Iterable[Plane]] | None = None
    n_planes: int | None = None
    controls: pd.DataFrame | Mapping[str, Sequence[str]] | None = None
    width_um: float | None = None
    height_um: float | None = None
    extra_nuclei: Floats | None = None
    extra_nucleus_cell: npt.NDArray[np.integer] | None = None
    segmentation_method: str = "Segmented by nucleus expansion of 5.0µm"
    organ: str = "Multi"
    info: RunInfo = field(default_factory=RunInfo)
    seed: int = 0
    pixel_size: float = 0.2125
    z_step: float = 3.0

    def __post_init__(self) -> None:
        n = len(self.cell_id)
        if len(set(self.cell_id)) != n:
            raise ValueError("cell ids must be unique")
        for name in ("cell_polygons", "nucleus_polygons"):
            shape = np.shape(getattr(self, name))
            if len(shape) != 3 or shape[0] != n or shape[2] != 2:
                raise ValueError(f"{name} is {shape}; expected ({n}, V, 2)")
        needed = {"x_um", "y_um", "z_um", "feature_name", "qv"}
        if missing := needed - set(self.transcripts.columns):
            raise ValueError(f"transcripts lack {sorted(missing)}")
        if self.morphology.ndim != 2 or self.morphology.dtype != np.uint16:
            raise ValueError("morphology must be (H, W) uint16")

    @property
    def region_area(self) -> float:
        """Area of the region in square micrometres."""
        height, width = self.morphology.shape
        return (self.width_um or width * self.pixel_size) * (self.height_um or height * self.pixel_size)

    def gene_table(self) -> pd.DataFrame:
        """Return the genes: columns ``id`` and ``name``."""
        if isinstance(self.genes, pd.DataFrame):
            return self.genes[["id", "name"]].astype(str).reset_index(drop=True)
        return pd.DataFrame({"id": list(self.genes), "name": list(self.genes)})

    def control_table(self) -> pd.DataFrame:
        """Return the controls: columns ``name`` and ``category``."""
        if self.controls is None:
            return control_features()
        if isinstance(self.controls, pd.DataFrame):
            return self.controls[["name", "category"]]
        rows = [(name, category) for category, names in self.controls.items() for name in names]
        return pd.DataFrame(rows, columns=["name", "category"])

    def planes(self) -> tuple[Iterable[Plane], int]:
        """Return the planes of the stack, to be taken once, and their number."""
        if self.stack is None:
            return iter((_unsharp(self.morphology), self.morphology)), 2
        planes: Any = self.stack() if callable(self.stack) else self.stack
        return planes, self.n_planes if self.n_planes is not None else len(planes)


def control_features() -> pd.DataFrame:
    """Return a panel's controls: columns ``name`` and ``category``, several of every category of XOA 3.0."""
    rows = [
        (pattern.format(i + 1), category) for category, (pattern, count) in _CONTROL_NAMES.items() for i in range(count)
    ]
    return pd.DataFrame(rows, columns=["name", "category"])


def _unsharp(image: Plane) -> Plane:
    """Return the image as a plane out of focus: blurred over 2 x 2 pixels and half as bright."""
    out = image // 2
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    out[:height, :width] = np.repeat(np.repeat(halve(image) // 2, 2, 0), 2, 1)
    return out


def write_bundle(folder: str | Path, slide: str, data: BundleData) -> Path:
    """Write a complete bundle of XOA 3.0.0 into ``folder``; files of other names there are left alone.

    Parameters
    ----------
    folder
        The bundle's folder, made if needed.
    slide
        The slide's name: region name and part of every identifier.
    data
        What to write.

    Returns
    -------
    The path of the inventory bundle.json, which lists all files of the folder; so write the H&E image
    ``{slide}_he_image.ome.tif`` and ``{slide}_he_imagealignment.csv`` there first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    features = _features(data)
    nuclei, owner = _nuclei(data)
    masks = tuple(rasterize(p / data.pixel_size, data.morphology.shape) for p in (nuclei, data.cell_polygons))
    transcripts, cell, feature = _transcripts(data, features, masks, nuclei)
    good = (cell >= 0) & (transcripts["qv"].to_numpy() >= MIN_QV)
    matrix = files.count_matrix(cell[good], feature[good], len(data.cell_id), len(features))
    cells = _cells(data, features, matrix, nuclei, owner)

    files.write_table(folder / "cells.parquet", cells)
    files.write_csv_gz(folder / "cells.csv.gz", cells)
    files.write_table(folder / "transcripts.parquet", transcripts)
    files.write_matrix(folder / "cell_feature_matrix.h5", matrix, data.cell_id, features, slide, data.info.genome)
    ids = np.asarray(data.cell_id, object)
    files.write_boundaries(folder / "nucleus_boundaries.parquet", nuclei, ids[owner])
    files.write_boundaries(folder / "cell_boundaries.parquet", data.cell_polygons, ids)
    files.write_cells_zarr(
        folder / "cells.zarr.zip",
        cell_id=decode_cell_ids(data.cell_id),
        summary=_summary(cells, nuclei, owner),
        masks=masks,
        polygons=(nuclei, np.asarray(data.cell_polygons)),
        owners=(owner, np.arange(len(ids))),
        method=data.segmentation_method,
        pixel_size=data.pixel_size,
    )
    del masks
    numbers = _numbers(data, cells, transcripts, matrix, features)
    files.write_experiment(folder / "experiment.xenium", slide, data, numbers)
    files.write_metrics(folder / "metrics_summary.csv", slide, data, numbers)
    files.write_gene_panel(folder / "gene_panel.json", data, features)
    _write_images(folder, slide, data)
    he = f"{slide}_he_image.ome.tif"
    write_inventory(folder, slide, "synthetic", files.VERSION.removeprefix("xenium-"), he)
    return folder / INVENTORY


def _write_images(folder: Path, slide: str, data: BundleData) -> None:
    """Write the DAPI image in focus and the stack."""
    write_morphology(
        folder / "morphology_focus" / "morphology_focus_0000.ome.tif",
        [data.morphology],
        1,
        pixel_size=data.pixel_size,
        file_uuid=derived_uuid(data.seed, slide, "morphology_focus"),
    )
    planes, n_planes = data.planes()
    write_morphology(folder / "morphology.ome.tif", planes, n_planes, pixel_size=data.pixel_size, z_step=data.z_step)


def _features(data: BundleData) -> pd.DataFrame:
    """Return all features in the matrix's order: id, name, category, feature_type, codeword."""
    genes = data.gene_table().assign(category="predesigned_gene")
    controls = data.control_table()
    order = {category: i for i, category in enumerate(CONTROL_CATEGORIES)}
    if unknown := set(controls["category"]) - set(order):
        raise ValueError(f"unknown control categories {sorted(unknown)}; valid are {list(order)}")
    controls = controls.sort_values("category", key=lambda c: c.map(order), kind="stable")
    controls = controls.assign(id=controls["name"])[["id", "name", "category"]]
    features = pd.concat([genes, controls], ignore_index=True)
    if features["name"].duplicated().any():
        raise ValueError("feature names must be unique")
    types = {category: kind for category, (kind, _) in CONTROL_CATEGORIES.items()}
    features["feature_type"] = features["category"].map({"predesigned_gene": "Gene Expression", **types})
    features["codeword"] = np.arange(len(features), dtype=np.int32)
    return features


def _nuclei(data: BundleData) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return all nuclei (P, V, 2) and the row of each one's cell, sorted by cell."""
    present = np.isfinite(data.nucleus_polygons).all((1, 2))
    nuclei, owner = np.asarray(data.nucleus_polygons)[present], np.flatnonzero(present)
    if data.extra_nuclei is not None and data.extra_nucleus_cell is not None:
        nuclei = np.concatenate([nuclei, data.extra_nuclei])
        owner = np.concatenate([owner, np.asarray(data.extra_nucleus_cell, np.int64)])
        order = np.argsort(owner, kind="stable")
        nuclei, owner = nuclei[order], owner[order]
    return nuclei, owner


def _transcripts(
    data: BundleData, features: pd.DataFrame, masks: tuple[npt.NDArray[np.uint32], ...], nuclei: Floats
) -> tuple[pd.DataFrame, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return transcripts.parquet, and the row of the cell (-1 for none) and of the feature of each."""
    given = data.transcripts
    names = pd.CategoricalDtype(features["name"])
    as_category = given["feature_name"].astype(names)
    feature = as_category.cat.codes.to_numpy().astype(np.int64)
    if (feature < 0).any():
        raise ValueError(f"not a feature of the panel: {given['feature_name'][feature < 0].iloc[0]!r}")
    # 10x gives coordinates in steps of 1/64 um.
    x, y, z = (np.round(given[c].to_numpy(np.float64) * 64) / 64 for c in ("x_um", "y_um", "z_um"))
    height, width = data.morphology.shape
    row = np.clip((y / data.pixel_size).astype(np.int64), 0, height - 1)
    column = np.clip((x / data.pixel_size).astype(np.int64), 0, width - 1)
    located = masks[1][row, column].astype(np.int64) - 1
    cell = given["cell"].to_numpy().astype(np.int64) if "cell" in given else located
    if "overlaps_nucleus" in given:
        overlaps = given["overlaps_nucleus"].to_numpy().astype(np.uint8)
    else:
        overlaps = (masks[0][row, column] > 0).astype(np.uint8)
    if "nucleus_distance" in given:
        distance = given["nucleus_distance"].to_numpy(np.float32)
    else:
        distance = _nucleus_distance(x, y, overlaps, nuclei)
    labels = np.append(np.asarray(data.cell_id, object), "UNASSIGNED")
    category = pd.Categorical.from_codes(
        pd.Index(features["category"].unique()).get_indexer(features["category"])[feature],
        categories=features["category"].unique(),
    )
    fov_names = np.array([f"{chr(65 + r)}{c + 1}" for r in range(26) for c in range(26)], object)
    fov = np.minimum((y / 700).astype(np.int64), 25) * 26 + np.minimum((x / 700).astype(np.int64), 25)
    table = pd.DataFrame(
        {
            "transcript_id": (np.uint64(1) << np.uint64(48)) + np.arange(len(given), dtype=np.uint64),
            "cell_id": pd.Categorical.from_codes(np.where(cell < 0, len(labels) - 1, cell), categories=labels),
            "overlaps_nucleus": overlaps,
            "feature_name": as_category.reset_index(drop=True),
            "x_location": x.astype(np.float32),
            "y_location": y.astype(np.float32),
            "z_location": z.astype(np.float32),
            "qv": given["qv"].to_numpy(np.float32),
            "fov_name": pd.Categorical.from_codes(fov, categories=fov_names),
            "nucleus_distance": distance,
            "codeword_index": features["codeword"].to_numpy(np.int32)[feature],
            "codeword_category": category,
            "is_gene": (features["feature_type"] == "Gene Expression").to_numpy()[feature],
        }
    )
    return table, cell, feature


def _nucleus_distance(x: Floats, y: Floats, overlaps: npt.NDArray[np.uint8], nuclei: Floats) -> npt.NDArray[np.float32]:
    """Return the distance (um) to the nearest nucleus outline; 0 inside, NaN where there is no nucleus."""
    from scipy.spatial import cKDTree

    distance = np.zeros(len(x), np.float32)
    if len(nuclei) == 0:
        return np.full(len(x), np.nan, np.float32)
    edges = np.concatenate([nuclei[:, :-1], (nuclei[:, :-1] + nuclei[:, 1:]) / 2], 1).reshape(-1, 2)
    outside = overlaps == 0
    distance[outside] = cKDTree(edges).query(np.stack([x, y], 1)[outside])[0]
    return distance


def _cells(
    data: BundleData,
    features: pd.DataFrame,
    matrix: Any,
    nuclei: Floats,
    owner: npt.NDArray[np.int64],
) -> pd.DataFrame:
    """Return cells.parquet."""
    n = len(data.cell_id)
    area, centroid = area_and_centroid(data.cell_polygons)
    count = np.bincount(owner, minlength=n)
    nucleus_area = np.bincount(owner, area_and_centroid(nuclei)[0], minlength=n)
    types = features["feature_type"].to_numpy()
    by_type = {kind: np.asarray(matrix[:, types == kind].sum(1)).ravel().astype(np.int64) for kind in set(types)}
    none = np.zeros(n, np.int64)
    columns: dict[str, Any] = {
        "cell_id": data.cell_id,
        "x_centroid": centroid[:, 0],
        "y_centroid": centroid[:, 1],
        "transcript_counts": by_type.get("Gene Expression", none),
    }
    columns |= {column: by_type.get(kind, none) for kind, column in CONTROL_CATEGORIES.values()}
    columns["total_counts"] = np.asarray(matrix.sum(1)).ravel().astype(np.int64)
    columns["cell_area"] = area
    columns["nucleus_area"] = np.where(count > 0, nucleus_area, np.nan)
    columns["nucleus_count"] = count.astype(np.int64)
    columns["segmentation_method"] = data.segmentation_method
    return pd.DataFrame(columns)


def _summary(cells: pd.DataFrame, nuclei: Floats, owner: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return cell_summary of cells.zarr.zip, (N, 8): cell x, y, area, nucleus x, y, area, z level, nuclei."""
    n = len(cells)
    area, centroid = area_and_centroid(nuclei)
    weight = np.bincount(owner, area, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (np.bincount(owner, area * centroid[:, i], minlength=n) / weight for i in (0, 1))
    columns = [cells["x_centroid"], cells["y_centroid"], cells["cell_area"], x, y, weight]
    return np.stack([*columns, np.full(n, 1.0), cells["nucleus_count"]], 1).astype(np.float64)


def _numbers(
    data: BundleData, cells: pd.DataFrame, transcripts: pd.DataFrame, matrix: Any, features: pd.DataFrame
) -> dict[str, float]:
    """Return the run's summary numbers, named as in experiment.xenium and metrics_summary.csv."""
    gene = transcripts["is_gene"].to_numpy() & (transcripts["qv"].to_numpy() >= MIN_QV)
    n_good = int(gene.sum())
    total_cell, total_nucleus = float(cells["cell_area"].sum()), float(np.nansum(cells["nucleus_area"]))
    assigned = int(cells["transcript_counts"].sum())
    nuclear = int((gene & (transcripts["overlaps_nucleus"].to_numpy() > 0)).sum())
    is_gene = transcripts["is_gene"].to_numpy()
    genes = matrix[:, (features["feature_type"] == "Gene Expression").to_numpy()]
    per_cell = np.diff(genes.indptr)
    return {
        "num_cells": len(cells),
        "transcripts_per_cell": float(cells["transcript_counts"].median()) if len(cells) else 0.0,
        "transcripts_per_100um": 100 * assigned / max(total_cell, 1e-9),
        "region_area": data.region_area,
        "total_cell_area": total_cell,
        "nuclear_transcripts_per_100um": 100 * nuclear / max(total_nucleus, 1e-9),
        "fraction_transcripts_assigned": assigned / max(n_good, 1),
        "n_good": n_good,
        "fraction_q20": n_good / max(int(is_gene.sum()), 1),
        "fraction_empty": float((cells["transcript_counts"] == 0).mean()) if len(cells) else 0.0,
        "n_genes": genes.shape[1],
        "genes_per_cell": float(np.median(per_cell)) if len(cells) else 0.0,
    }
