"""Turn a bundle of XOA 3.0 into the layouts of other versions, from descriptions of the formats.

The content stays: the same cells, nuclei, transcripts and counts, so far as the version can say them.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from nuclass.synthetic.identifiers import decode_cell_ids

_OLD_KEYS = """
    run_name run_start_time region_name preservation_method num_cells transcripts_per_cell transcripts_per_100um
    cassette_name slide_id panel_design_id panel_name panel_organism panel_tissue_type panel_num_targets_predesigned
    panel_num_targets_custom pixel_size instrument_sn instrument_sw_version analysis_sw_version experiment_uuid
    cassette_uuid roi_uuid z_step_size well_uuid images xenium_explorer_files
""".split()
_OLD_TRANSCRIPTS = "transcript_id cell_id overlaps_nucleus feature_name x_location y_location z_location qv".split()


def version_1_0_1(folder: Path) -> None:
    """Whole-number ids, CSV.gz, 13 vertices, no ``label_id``; capital X; the clusters in a folder."""
    _experiment(folder, "Xenium-1.0.1", drop_new=True, run_start_time="", experiment_uuid="", transcripts_per_cell=30.0)
    _only_known_controls(folder)
    number_ids(folder)
    _one_nucleus(folder, every=2)
    _cells_columns(folder, ["unassigned_codeword_counts", "deprecated_codeword_counts", "genomic_control_counts"])
    _transcript_columns(folder, _OLD_TRANSCRIPTS)
    for name in ("cells", "transcripts", "nucleus_boundaries", "cell_boundaries"):
        to_csv(folder, name, compress=True)
    old_cells_zarr(folder)
    _old_images(folder)
    clusters(folder, "folder")


def version_1_0_2(folder: Path) -> None:
    """As 1.0.1, in plain CSV for the cells and Parquet without text marks for the transcripts."""
    version_1_0_1(folder)
    _experiment(folder, "xenium-1.0.2")
    for name in ("cells", "transcripts"):
        frame = pd.read_csv(folder / f"{name}.csv.gz")
        (folder / f"{name}.csv.gz").unlink()
        if name == "cells":
            frame.to_csv(folder / "cells.csv", index=False)
        else:
            _write(folder / "transcripts.parquet", as_bytes(frame, ["feature_name"]))


def version_1_3(folder: Path) -> None:
    """Text ids as bytes in Parquet, no ``label_id``; ``major_version`` appears."""
    _experiment(folder, "xenium-1.3.0.5", drop_new=True, major_version=2, minor_version=0, calibration_uuid="x")
    _only_known_controls(folder)
    _one_nucleus(folder)
    _cells_columns(folder, ["unassigned_codeword_counts", "deprecated_codeword_counts", "genomic_control_counts"])
    _transcript_columns(folder, [*_OLD_TRANSCRIPTS, "fov_name", "nucleus_distance"])
    for name in ("cells", "transcripts", "nucleus_boundaries", "cell_boundaries"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        _write(folder / f"{name}.parquet", as_bytes(frame, ["cell_id", "feature_name", "fov_name"]))
    old_cells_zarr(folder)
    _old_images(folder)
    clusters(folder, "tar")


def version_1_7(folder: Path) -> None:
    """``unassigned_codeword_counts``, text as text; outlines from the Zarr zip alone."""
    _experiment(folder, "xenium-1.7.1.0", drop_new=True, major_version=3, minor_version=0, patch_version=0)
    _one_nucleus(folder)
    _cells_columns(folder, [])
    _transcript_columns(folder, [*_OLD_TRANSCRIPTS, "fov_name", "nucleus_distance"])
    old_cells_zarr(folder)
    only_zarr(folder)
    _old_images(folder)
    clusters(folder, "zarr")


def version_2_0_early(folder: Path) -> None:
    """The nuclei of a cell in one outline, without ``label_id`` and ``nucleus_count``."""
    _experiment(folder, "xenium-2.0.0.6-35-ga7e17149a", major_version=4)
    for name in ("nucleus", "cell"):
        file = folder / f"{name}_boundaries.parquet"
        _write(file, pd.read_parquet(file).drop(columns="label_id"))
    _cells_columns(folder, [])
    (folder / "cells.zarr.zip").unlink()
    clusters(folder, "zarr")


def version_2(folder: Path) -> None:
    """``label_id`` and ``nucleus_count``, no genomic controls; outlines from ``polygon_sets`` alone."""
    _experiment(folder, "xenium-2.0.0.10", major_version=4)
    only_zarr(folder)
    clusters(folder, "tar")


def version_3(folder: Path) -> None:
    """As written."""
    clusters(folder, "zarr")


def version_3_ranger(folder: Path) -> None:
    """A bundle of 1.0 rerun by xeniumranger 3.0.1: the layout is that of 3.0."""
    _experiment(
        folder, "Xenium-1.0.1", xenium_ranger={"version": "xenium-3.0.1.1", "commands": []}, instrument_sn="R&D"
    )
    clusters(folder, "tar")


def version_4_protein(folder: Path) -> None:
    """Proteins with fractions in the matrix; the DAPI image under its new name."""
    _experiment(folder, "xenium-4.0.0.19", major_version=6, num_protein_targets=2)
    focus = folder / "morphology_focus"
    (focus / "morphology_focus_0000.ome.tif").rename(focus / "ch0000_dapi.ome.tif")
    (focus / "ch0001_cd45.ome.tif").write_bytes((focus / "ch0000_dapi.ome.tif").read_bytes())
    _experiment(folder, "xenium-4.0.0.19", images={"morphology_focus_filepath": "morphology_focus/ch0000_dapi.ome.tif"})
    _add_proteins(folder)
    clusters(folder, "zarr")


VERSIONS: dict[str, Callable[[Path], None]] = {
    "1.0.1": version_1_0_1,
    "1.0.2": version_1_0_2,
    "1.3.0.5": version_1_3,
    "1.7.1.0": version_1_7,
    "2.0.0.6-35-ga7e17149a": version_2_0_early,
    "2.0.0.10": version_2,
    "3.0.0.15": version_3,
    "3.0.1.1": version_3_ranger,
    "4.0.0.19": version_4_protein,
}


def clustered(n: int) -> np.ndarray:
    """Return the clusters written for ``n`` cells: 0 (none) for every seventh, else 1 to 3."""
    number = np.arange(n) % 3 + 1
    number[6::7] = 0
    return number


def clusters(folder: Path, kind: str) -> None:
    """Write the clusters as a folder, a tar or a Zarr zip padded with zeros."""
    cells = next(f for f in (folder / "cells.parquet", folder / "cells.csv.gz", folder / "cells.csv") if f.is_file())
    ids = (pd.read_parquet(cells) if cells.suffix == ".parquet" else pd.read_csv(cells))["cell_id"]
    ids = ids.str.decode("utf-8") if isinstance(ids.iloc[0], bytes) else ids
    number = clustered(len(ids))
    if kind == "zarr":
        indices = np.concatenate([np.flatnonzero(number == i) for i in (1, 2, 3)])
        padded = np.zeros(len(ids), np.uint32)
        padded[: len(indices)] = indices
        with zarr.storage.ZipStore(folder / "analysis.zarr.zip", mode="w") as store:
            root = zarr.open_group(store, mode="w", zarr_format=2)
            names = {
                "grouping_names": ["gene_expression_graphclust"],
                "group_names": [["Cluster 1", "Cluster 2", "Cluster 3"]],
            }
            groups = root.create_group("cell_groups", attributes=names)
            one = groups.create_group("0")
            starts = np.cumsum([0, (number == 1).sum(), (number == 2).sum()]).astype(np.uint32)
            _array(one, "indices", padded)
            _array(one, "indptr", starts)
        return
    text = pd.DataFrame({"Barcode": ids, "Cluster": number})[number > 0].to_csv(index=False).encode()
    member = "analysis/clustering/gene_expression_graphclust/clusters.csv"
    if kind == "folder":
        file = folder / member.replace("gene_expression_", "")
        file.parent.mkdir(parents=True)
        file.write_bytes(text)
        return
    with tarfile.open(folder / "analysis.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))


def number_ids(folder: Path) -> None:
    """Write ids 1 to N in every table and the matrix; -1 for no cell."""
    ids = pd.read_parquet(folder / "cells.parquet")["cell_id"]
    number = {text: i + 1 for i, text in enumerate(ids)}
    for name in ("cells", "transcripts", "nucleus_boundaries", "cell_boundaries"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        frame["cell_id"] = frame["cell_id"].map(number).fillna(-1).astype("int64")
        _write(folder / f"{name}.parquet", frame)
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array([str(i + 1).encode() for i in range(len(ids))])


def to_csv(folder: Path, name: str, compress: bool) -> None:
    """Write a table as CSV in place of Parquet."""
    frame = pd.read_parquet(folder / f"{name}.parquet")
    (folder / f"{name}.parquet").unlink()
    target = folder / f"{name}.csv{'.gz' if compress else ''}"
    with gzip.open(target, "wt") if compress else target.open("w") as stream:
        frame.to_csv(stream, index=False)


def only_zarr(folder: Path) -> None:
    """Leave the outlines in the Zarr zip alone."""
    for kind in ("nucleus", "cell"):
        for file in folder.glob(f"{kind}_boundaries.*"):
            file.unlink()


def old_cells_zarr(folder: Path) -> None:
    """Write cells.zarr.zip as before 2.0: one nucleus and one cell a row, no ``polygon_sets``."""
    tables = {kind: _boundaries(folder, kind) for kind in ("nucleus", "cell")}
    ids = list(dict.fromkeys(tables["cell"]["cell_id"]))
    longest = max(int(t.groupby("cell_id").size().max()) for t in tables.values())
    vertices, count = np.zeros((2, len(ids), longest, 2), np.float32), np.zeros((2, len(ids)), np.int32)
    place = {cell: i for i, cell in enumerate(ids)}
    for s, table in enumerate(tables.values()):
        for cell, rows in table.groupby("cell_id"):
            points = rows[["vertex_x", "vertex_y"]].to_numpy()
            vertices[s, place[cell], : len(points)] = points
            vertices[s, place[cell], len(points) :] = points[0]
            count[s, place[cell]] = len(points)
    numbers = isinstance(ids[0], int | np.integer)
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        root = zarr.open_group(store, mode="w", zarr_format=2)
        _array(root, "cell_id", np.array(ids, np.uint32) if numbers else decode_cell_ids([str(i) for i in ids]))
        _array(root, "polygon_vertices", vertices.reshape(2, len(ids), -1))
        _array(root, "polygon_num_vertices", count)


def as_bytes(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return text columns as bytes, as Parquet without the UTF8 mark gives them."""
    for column in set(columns) & set(frame):
        if frame[column].dtype.kind not in "iu":
            frame[column] = frame[column].astype(str).str.encode("utf-8")
    return frame


def _array(group: zarr.Group, name: str, values: np.ndarray) -> None:
    group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=values.shape)[...] = values


def _write(file: Path, frame: pd.DataFrame) -> None:
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), file)


def _boundaries(folder: Path, kind: str) -> pd.DataFrame:
    file = folder / f"{kind}_boundaries.parquet"
    frame = pd.read_parquet(file) if file.is_file() else pd.read_csv(file.with_suffix(".csv.gz"))
    if isinstance(frame["cell_id"].iloc[0], bytes):
        frame["cell_id"] = frame["cell_id"].str.decode("utf-8")
    return frame


def _experiment(folder: Path, version: str, drop_new: bool = False, **changes: object) -> None:
    file = folder / "experiment.xenium"
    content = json.loads(file.read_text())
    if drop_new:
        content = {key: content[key] for key in _OLD_KEYS}
    file.write_text(json.dumps(content | {"analysis_sw_version": version} | changes))


def _one_nucleus(folder: Path, every: int = 1) -> None:
    """Keep a cell's first nucleus, every second vertex if asked (13 of 25), without labels."""
    for kind in ("nucleus", "cell"):
        file = folder / f"{kind}_boundaries.parquet"
        frame = pd.read_parquet(file)
        frame = frame[frame["label_id"] == frame.groupby("cell_id")["label_id"].transform("min")]
        frame = frame[frame.groupby("cell_id").cumcount() % every == 0]
        _write(file, frame.drop(columns="label_id"))


def _cells_columns(folder: Path, drop: list[str]) -> None:
    file = folder / "cells.parquet"
    new = ["nucleus_count", "segmentation_method"]
    _write(file, pd.read_parquet(file).drop(columns=[*drop, *new]))


def _transcript_columns(folder: Path, keep: list[str]) -> None:
    file = folder / "transcripts.parquet"
    _write(file, pd.read_parquet(file)[keep])


def _only_known_controls(folder: Path) -> None:
    """Leave out the kinds of controls that came later, and name some codewords BLANK as then."""
    file = folder / "transcripts.parquet"
    frame = pd.read_parquet(file)
    kinds = ["predesigned_gene", "negative_control_probe", "negative_control_codeword"]
    frame = frame[frame["codeword_category"].isin(kinds)]
    blank = {f"NegControlCodeword_{i:05d}": f"BLANK_{i:04d}" for i in range(1, 11)}
    frame["feature_name"] = frame["feature_name"].astype(str).replace(blank)
    _write(file, frame)
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as matrix:
        features = matrix["matrix/features"]
        for part in ("id", "name"):
            names = [blank.get(v.decode(), v.decode()) for v in features[part][:]]
            del features[part]
            features[part] = np.array(names, "S40")
    cells = pd.read_parquet(folder / "cells.parquet")
    later = ["unassigned_codeword_counts", "deprecated_codeword_counts", "genomic_control_counts"]
    cells["total_counts"] -= cells[later].sum(axis=1)
    _write(folder / "cells.parquet", cells)


def _old_images(folder: Path) -> None:
    focus = folder / "morphology_focus" / "morphology_focus_0000.ome.tif"
    shutil.move(focus, folder / "morphology_focus.ome.tif")
    focus.parent.rmdir()
    images = {"morphology_filepath": "morphology.ome.tif", "morphology_focus_filepath": "morphology_focus.ome.tif"}
    file = folder / "experiment.xenium"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": images}))


def _add_proteins(folder: Path) -> None:
    """Append two proteins of type Protein Expression with values that are not whole."""
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        group = file["matrix"]
        n_features, n_cells = group["shape"][:]
        data, indices, indptr = group["data"][:].astype(np.float64), group["indices"][:], group["indptr"][:]
        new_data = np.concatenate([np.append(data[a:b], [0.7, 1.2]) for a, b in pairwise(indptr)])
        proteins = [n_features, n_features + 1]
        new_indices = [np.append(indices[a:b], proteins) for a, b in pairwise(indptr)]
        changed = {
            "data": new_data,
            "indices": np.concatenate(new_indices),
            "indptr": indptr + 2 * np.arange(n_cells + 1),
            "shape": np.array([n_features + 2, n_cells], np.int32),
        }
        for name, values in changed.items():
            del group[name]
            group[name] = values
        for name, values in (
            ("id", ["CD45RA", "CD3E"]),
            ("name", ["CD45RA", "CD3E"]),
            ("feature_type", ["Protein Expression"] * 2),
            ("genome", ["Unknown"] * 2),
        ):
            old = [v.decode() for v in group["features"][name][:]]
            del group["features"][name]
            group["features"][name] = np.array([*old, *values], "S40")
