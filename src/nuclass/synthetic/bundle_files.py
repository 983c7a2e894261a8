"""The single files of a bundle of XOA 3.0.0, each written so that equal input gives equal bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.core.files import atomic_path
from nuclass.synthetic.identifiers import derived_uuid

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from nuclass.synthetic.bundle import BundleData

VERSION = "xenium-3.0.0.15"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MASK_CHUNK = 1024
_METHODS = [
    "Segmented by boundary stain (None)",
    "Segmented by interior stain (None)",
    "Segmented by nucleus expansion of 5.0µm",
    "Segmented by nuclear stain (DAPI)",
]
_SUMMARY_COLUMNS = {
    "cell_centroid_x": "Cell centroid in X",
    "cell_centroid_y": "Cell centroid in Y",
    "cell_area": "Cell area",
    "nucleus_centroid_x": "Nucleus centroid in X",
    "nucleus_centroid_y": "Nucleus centroid in Y",
    "nucleus_area": "Nucleus area",
    "z_level": "z_level",
    "nucleus_count": "Nucleus count",
}
_METRICS = tuple(
    """
    run_name cassette_name region_name panel_name panel_design_id predesigned_panel_id region_area total_cell_area
    total_high_quality_decoded_transcripts fraction_transcripts_decoded_q20 fraction_predesigned_transcripts_decoded_q20
    fraction_custom_transcripts_decoded_q20 nuclear_transcripts_per_100um2 decoded_transcripts_per_100um2
    adjusted_negative_control_probe_rate adjusted_negative_control_codeword_rate adjusted_genomic_control_probe_rate
    negative_control_probe_counts_per_control_per_cell genomic_control_probe_counts_per_control_per_cell
    estimated_number_of_false_positive_transcripts_per_cell
    estimated_number_of_false_positive_transcripts_per_cell_including_genomic_counts num_cells_detected
    fraction_empty_cells cells_per_100um2 fraction_transcripts_assigned median_genes_per_cell
    median_predesigned_genes_per_cell median_custom_genes_per_cell median_transcripts_per_cell
    median_predesigned_transcripts_per_cell median_custom_transcripts_per_cell thickness_transcripts_high_quality
    stain_definition segmented_cell_stain_frac segmented_cell_boundary_frac segmented_cell_interior_frac
    segmented_cell_nuc_expansion_frac segmented_cell_boundary_count segmented_cell_interior_count
    segmented_cell_nuc_expansion_count fraction_of_ambiguous_nucleus_mask_pixels fraction_of_ambiguous_cell_mask_pixels
    fraction_of_nucleus_polygons_removed fraction_of_cell_polygons_removed fraction_of_nuclei_without_cell
    number_of_cell_non_simple_polygons number_of_cell_multi_polygons number_of_nucleus_non_simple_polygons
    number_of_nucleus_multi_polygons segmented_cell_imported_frac segmented_cell_imported_count
    """.split()
)

_POINTERS = {
    "images": {
        "morphology_filepath": "morphology.ome.tif",
        "morphology_focus_filepath": "morphology_focus/morphology_focus_0000.ome.tif",
    },
    "xenium_explorer_files": {
        "transcripts_zarr_filepath": "transcripts.zarr.zip",
        "cells_zarr_filepath": "cells.zarr.zip",
        "cell_features_zarr_filepath": "cell_feature_matrix.zarr.zip",
        "analysis_zarr_filepath": "analysis.zarr.zip",
        "analysis_summary_filepath": "analysis_summary.html",
    },
}


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write Parquet as 10x does: zstd, plain strings (categories are written as strings)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    for index, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type) or pa.types.is_large_string(column.type):
            table = table.set_column(index, column.name, table.column(index).cast(pa.string()))
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd")


def write_csv_gz(path: Path, frame: pd.DataFrame) -> None:
    """Write a gzipped CSV with quoted text and without a time stamp."""
    text = frame.to_csv(index=False, quoting=2).encode()
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as stream:
        stream.write(text)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def write_boundaries(path: Path, polygons: npt.NDArray[np.floating], owners: npt.NDArray[Any]) -> None:
    """Write outlines (P, V, 2) in micrometres; ``label_id`` is the row + 1, as in the masks."""
    vertices = polygons.shape[1]
    frame = pd.DataFrame(
        {
            "cell_id": np.repeat(owners.astype(str), vertices) if len(owners) else np.array([], str),
            "vertex_x": polygons[..., 0].ravel().astype(np.float32),
            "vertex_y": polygons[..., 1].ravel().astype(np.float32),
            "label_id": np.repeat(np.arange(1, len(polygons) + 1), vertices),
        }
    )
    write_table(path, frame)


def count_matrix(
    cell: npt.NDArray[np.int64], feature: npt.NDArray[np.int64], n_cells: int, n_features: int
) -> csr_matrix:
    """Return counts (cells x features) of one transcript per entry of ``cell`` and ``feature``."""
    from scipy.sparse import csr_matrix

    key, count = np.unique(cell * n_features + feature, return_counts=True)
    rows, columns = np.divmod(key, n_features)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_cells))])
    return csr_matrix((count.astype(np.int32), columns, indptr), shape=(n_cells, n_features))


def write_matrix(
    path: Path, matrix: csr_matrix, cell_id: list[str], features: pd.DataFrame, slide: str, genome: str
) -> None:
    """Write cell_feature_matrix.h5: features x cells as compressed columns, all feature types."""
    import h5py

    def text(values: Any) -> npt.NDArray[np.bytes_]:
        return np.array([str(value).encode() for value in values], dtype="S")

    def put(group: h5py.Group, name: str, values: npt.NDArray[Any], chunk: int = 80000) -> None:
        group.create_dataset(name, data=values, maxshape=(None,), chunks=(chunk,), compression="gzip")

    with atomic_path(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["filetype"] = "matrix"
        file.attrs["library_ids"] = text([slide])
        file.attrs["original_gem_groups"] = np.array([1])
        file.attrs["version"] = np.int64(2)
        group = file.create_group("matrix")
        put(group, "barcodes", text(cell_id))
        put(group, "data", matrix.data.astype(np.int32))
        put(group, "indices", matrix.indices.astype(np.int64))
        put(group, "indptr", matrix.indptr.astype(np.int64))
        put(group, "shape", np.array(matrix.shape[::-1], np.int32))
        described = group.create_group("features")
        described.create_dataset("_all_tag_keys", data=text(["genome"]))
        put(described, "feature_type", text(features["feature_type"]), 512)
        put(described, "genome", text([genome] * len(features)), 2048)
        put(described, "id", text(features["id"]), 512)
        put(described, "name", text(features["name"]), 512)


class _ZarrZip:
    """A zarr v2 store in an uncompressed zip, without time stamps."""

    def __init__(self, stream: Any) -> None:
        self._zip = zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED)

    def close(self) -> None:
        self._zip.close()

    def put(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, _EPOCH)
        info.external_attr = 0o644 << 16
        self._zip.writestr(info, data)

    def json(self, name: str, data: Any) -> None:
        self.put(name, json.dumps(data, indent=4).encode())

    def group(self, name: str) -> None:
        self.json(f"{name}/.zgroup" if name else ".zgroup", {"zarr_format": 2})

    def array(
        self, name: str, values: npt.NDArray[Any], chunks: tuple[int, ...] | None = None, cname: str = "lz4"
    ) -> None:
        """Write an array in blosc-compressed chunks; chunks of zeros are left out (fill value 0)."""
        import numcodecs

        codec = numcodecs.Blosc(cname=cname, clevel=1 if cname == "zstd" else 5, shuffle=1)
        chunks = chunks or tuple(max(size, 1) for size in values.shape)
        meta = {
            "chunks": chunks,
            "compressor": codec.get_config(),
            "dtype": values.dtype.str,
            "fill_value": 0 if values.dtype.kind in "iu" else 0.0,
            "filters": None,
            "order": "C",
            "shape": values.shape,
            "zarr_format": 2,
        }
        self.json(f"{name}/.zarray", meta)
        counts = tuple(-(-size // chunk) for size, chunk in zip(values.shape, chunks, strict=True))
        for index in np.ndindex(*counts):
            part = values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))]
            if not part.any():
                continue
            block = np.zeros(chunks, values.dtype)
            block[tuple(slice(0, size) for size in part.shape)] = part
            with _one_thread():
                self.put(f"{name}/{'.'.join(map(str, index))}", codec.encode(block))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blosc puts the parts of a block in the order in which its threads finish: other bytes each time."""
    from numcodecs import blosc

    before, blosc.use_threads = blosc.use_threads, False
    try:
        yield
    finally:
        blosc.use_threads = before


def write_cells_zarr(
    path: Path,
    *,
    cell_id: npt.NDArray[np.uint32],
    summary: npt.NDArray[np.float64],
    masks: tuple[npt.NDArray[np.uint32], ...],
    polygons: tuple[npt.NDArray[np.floating], ...],
    owners: tuple[npt.NDArray[np.integer], ...],
    method: str,
    pixel_size: float,
) -> None:
    """Write cells.zarr.zip (version 6.2); the tuples hold nuclei first, then cells."""
    methods = _METHODS if method in _METHODS else [*_METHODS, method]
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        store = _ZarrZip(stream)
        store.group("")
        store.json(".zattrs", _cells_attributes(len(cell_id), methods))
        store.array("cell_id", cell_id)
        store.array("cell_summary", summary, (max(len(summary), 1), 1))
        store.json(
            "cell_summary/.zattrs",
            {"column_descriptions": list(_SUMMARY_COLUMNS.values()), "column_names": list(_SUMMARY_COLUMNS)},
        )
        store.group("masks")
        scale = np.diag([1 / pixel_size, 1 / pixel_size, 1, 1]).astype(np.float32)
        store.array("masks/homogeneous_transform", scale)
        for index, mask in enumerate(masks):
            store.array(f"masks/{index}", mask, (_MASK_CHUNK, _MASK_CHUNK), "zstd")
        store.group("polygon_sets")
        method_of = (methods.index("Segmented by nuclear stain (DAPI)"), methods.index(method))
        for index, (outlines, owner, code) in enumerate(zip(polygons, owners, method_of, strict=True)):
            name, count = f"polygon_sets/{index}", len(outlines)
            store.group(name)
            store.array(f"{name}/cell_index", owner.astype(np.uint32))
            store.array(f"{name}/method", np.full(count, code, np.uint32))
            store.array(f"{name}/num_vertices", np.full(count, outlines.shape[1], np.int32))
            store.array(f"{name}/vertices", outlines.reshape(count, -1).astype(np.float32))
        store.close()


def _cells_attributes(n_cells: int, methods: list[str]) -> dict[str, Any]:
    return {
        "major_version": 6,
        "minor_version": 2,
        "name": "CellSegmentationDataset",
        "number_cells": n_cells,
        "polygon_set_descriptions": ["DAPI-based nuclei segmentation", "Cell Segmentation"],
        "polygon_set_display_names": ["Nucleus boundaries", "Cell boundaries"],
        "polygon_set_names": ["nucleus", "cell"],
        "segmentation_methods": methods,
        "spatial_units": "microns",
    }


def write_experiment(path: Path, slide: str, data: BundleData, numbers: dict[str, float]) -> None:
    """Write experiment.xenium with the keys of XOA 3.0.0.15."""

    def identity(name: str) -> str:
        return derived_uuid(data.seed, slide, name)

    info = data.info
    content = {
        "major_version": 5,
        "minor_version": 0,
        "patch_version": 0,
        "run_name": info.run_name,
        "run_start_time": info.run_start_time,
        "region_name": slide,
        "preservation_method": info.preservation_method,
        "num_cells": int(numbers["num_cells"]),
        "transcripts_per_cell": int(numbers["transcripts_per_cell"]),
        "transcripts_per_100um": numbers["transcripts_per_100um"],
        "region_area": numbers["region_area"],
        "total_cell_area": numbers["total_cell_area"],
        "thickness_of_high_quality_decoded_transcripts": info.thickness_um,
        "nuclear_transcripts_per_100um": numbers["nuclear_transcripts_per_100um"],
        "fraction_transcripts_assigned": numbers["fraction_transcripts_assigned"],
        "segmented_cell_stain_frac": 0.0,
        "segmented_cell_boundary_frac": 0.0,
        "segmented_cell_interior_frac": 0.0,
        "segmented_cell_nuc_expansion_frac": 1.0,
        "imported_cell_frac": 0.0,
        "cassette_name": info.cassette_name,
        "slide_id": slide,
        "panel_type": "predesigned",
        "panel_design_id": info.panel_design_id,
        "panel_predesigned_id": "",
        "panel_name": info.panel_name,
        "panel_organism": info.organism,
        "panel_tissue_type": data.organ,
        "panel_num_targets_predesigned": int(numbers["n_genes"]),
        "panel_num_targets_custom": 0,
        "chemistry_version": "v1",
        "pixel_size": data.pixel_size,
        "instrument_sn": "synthetic",
        "instrument_sw_version": "synthetic",
        "analysis_sw_version": VERSION,
        "analysis_uuid": identity("analysis"),
        "experiment_uuid": identity("experiment"),
        "cassette_uuid": identity("cassette"),
        "roi_uuid": identity("roi"),
        "z_step_size": data.z_step,
        "well_uuid": identity("well"),
        "calibration_uuid": identity("calibration"),
        **_POINTERS,
        "segmentation_stain": "",
    }
    _write_text(path, json.dumps(content, indent=4))


def write_metrics(path: Path, slide: str, data: BundleData, numbers: dict[str, float]) -> None:
    """Write metrics_summary.csv: the 51 columns of 3.0.0, empty where nothing was measured."""
    n_cells = int(numbers["num_cells"])
    row: dict[str, Any] = dict.fromkeys(_METRICS, "")
    row |= {
        "run_name": data.info.run_name,
        "cassette_name": data.info.cassette_name,
        "region_name": slide,
        "panel_name": data.info.panel_name,
        "panel_design_id": data.info.panel_design_id,
        "region_area": numbers["region_area"],
        "total_cell_area": numbers["total_cell_area"],
        "total_high_quality_decoded_transcripts": int(numbers["n_good"]),
        "fraction_transcripts_decoded_q20": numbers["fraction_q20"],
        "nuclear_transcripts_per_100um2": numbers["nuclear_transcripts_per_100um"],
        "decoded_transcripts_per_100um2": 100 * numbers["n_good"] / max(numbers["region_area"], 1e-9),
        "num_cells_detected": n_cells,
        "fraction_empty_cells": numbers["fraction_empty"],
        "cells_per_100um2": 100 * n_cells / max(numbers["region_area"], 1e-9),
        "fraction_transcripts_assigned": numbers["fraction_transcripts_assigned"],
        "median_genes_per_cell": int(numbers["genes_per_cell"]),
        "median_transcripts_per_cell": int(numbers["transcripts_per_cell"]),
        "thickness_transcripts_high_quality": data.info.thickness_um,
        "segmented_cell_stain_frac": 0.0,
        "segmented_cell_boundary_frac": 0.0,
        "segmented_cell_interior_frac": 0.0,
        "segmented_cell_nuc_expansion_frac": 1.0,
        "segmented_cell_boundary_count": 0,
        "segmented_cell_interior_count": 0,
        "segmented_cell_nuc_expansion_count": n_cells,
    }
    _write_text(path, pd.DataFrame([row], columns=_METRICS).to_csv(index=False))


def write_gene_panel(path: Path, data: BundleData, features: pd.DataFrame) -> None:
    """Write gene_panel.json: genes, negative control probes, genomic controls, deprecated codewords."""
    info = data.info
    identity = {"design_id": info.panel_design_id, "name": info.panel_name, "version": "1.0.0"}
    descriptors = {
        "predesigned_gene": "gene",
        "negative_control_probe": "negative_control",
        "genomic_control_probe": "genomic_control",
        "deprecated_codeword": "deprecated_codeword",
    }
    targets = []
    for row in features.itertuples():
        if row.category not in descriptors:
            continue
        described = {"id": row.id, "name": row.name} if row.category == "predesigned_gene" else {"name": row.name}
        targets.append(
            {
                "codewords": [int(row.codeword)],
                "info": {"gene_coverage": 1},
                "source": {"category": "current", "identity": identity},
                "type": {"data": described, "descriptor": descriptors[row.category]},
            }
        )
    nobody = {"email": None, "name": None}
    payload = {
        "chemistry": {"decoder": "xenium_decoding_v1", "version": "v1"},
        "customer": nobody,
        "designer": {"date_created": info.run_start_time.rstrip("Z"), "designed_by": nobody, "version": "1.0.0"},
        "panel": {
            "description": info.panel_name,
            "identity": identity,
            "num_gene_targets": int((features["category"] == "predesigned_gene").sum()),
            "species": info.organism,
            "tissue": data.organ,
            "type": {"descriptor": "predesigned"},
        },
        "spec_version": "0.1.0",
        "targets": targets,
    }
    checksum = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
    metadata = {"sha256_checksum": checksum, "ui_props": {"visible": True}}
    _write_text(path, json.dumps({"metadata": metadata, "payload": payload}, indent=2))


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
