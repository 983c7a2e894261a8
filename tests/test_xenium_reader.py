"""The bundle reader and the alignment, on written bundles, on old layouts, on real data and on broken input."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bundle_example import example
from nuclass.core.errors import UserError
from nuclass.synthetic.bundle import BundleData, write_bundle
from nuclass.synthetic.raster import area_and_centroid
from nuclass.xenium.polygons import polygon_starts, ragged_area_and_centroid
from nuclass.xenium.reader import UNASSIGNED, read_bundle


@pytest.fixture(scope="module")
def data() -> BundleData:
    return example()


@pytest.fixture(scope="module")
def written(data: BundleData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_bundle(folder, "lung_9", data)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def test_cells(written: Path, data: BundleData) -> None:
    cells = read_bundle(written).cells()
    assert list(cells["cell_id"]) == data.cell_id
    _, centroid = area_and_centroid(data.nucleus_polygons)
    np.testing.assert_allclose(cells[["nucleus_x_um", "nucleus_y_um"]], centroid, atol=1e-3)
    _, centroid = area_and_centroid(data.cell_polygons)
    np.testing.assert_allclose(cells[["x_centroid", "y_centroid"]], centroid)
    without = np.isnan(data.nucleus_polygons).any((1, 2))
    assert (cells["nucleus_x_um"].isna() == without).all()
    assert (cells["nucleus_count"][without] == 0).all()
    assert cells["nucleus_count"][5] == 2, "the cell with two nuclei, whose larger one gives the centroid"
    raw = pd.read_parquet(written / "cells.parquet")
    assert (cells["control_counts"] == raw["control_probe_counts"] + raw["control_codeword_counts"]).all()


def test_counts_are_those_of_the_cells(written: Path) -> None:
    bundle = read_bundle(written)
    cells, counts = bundle.cells(), bundle.counts()
    assert counts.shape == (60, 25)
    assert counts.X.dtype.kind == "i"
    assert counts.X.format == "csr"
    assert list(counts.obs_names) == list(cells["cell_id"])
    assert list(counts.var_names[:2]) == ["GENE0", "GENE1"]
    assert counts.var["gene_id"].iloc[0] == "ENSG00000000000"
    np.testing.assert_array_equal(np.asarray(counts.X.sum(1)).ravel(), cells["transcript_counts"])


def test_counts_follow_the_order_of_the_cells(folder: Path) -> None:
    before = read_bundle(folder).counts()
    cells = pd.read_parquet(folder / "cells.parquet").sample(frac=1, random_state=1)
    cells.to_parquet(folder / "cells.parquet", index=False)
    bundle = read_bundle(folder)
    after = bundle.counts()
    assert list(after.obs_names) == list(cells["cell_id"])
    assert (after.X != before[after.obs_names].X).nnz == 0


def test_gene_names_are_made_unique(folder: Path) -> None:
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        file["matrix/features/name"][1] = b"GENE0"
    counts = read_bundle(folder).counts()
    assert list(counts.var_names[:2]) == ["GENE0", "GENE0-1"]
    assert list(counts.var["gene_name"][:2]) == ["GENE0", "GENE0"]


@pytest.mark.parametrize("kind", ["int", "bytes"])
def test_old_layouts(folder: Path, kind: str) -> None:
    """1.0: whole-number ids, no nucleus_count, no label_id; 1.3 in Parquet: bytes."""
    expected = read_bundle(folder).cells()
    ids = {text: i + 1 for i, text in enumerate(expected["cell_id"])}

    def old(frame: pd.DataFrame) -> pd.DataFrame:
        number = frame["cell_id"].map(ids).fillna(-1).astype("int64")
        frame["cell_id"] = number if kind == "int" else number.astype(str).str.encode("utf-8")
        return frame

    cells = old(pd.read_parquet(folder / "cells.parquet")).drop(
        columns=["nucleus_count", "segmentation_method", "genomic_control_counts"]
    )
    cells.to_parquet(folder / "cells.parquet")
    for name in ("nucleus_boundaries", "transcripts"):
        frame = old(pd.read_parquet(folder / f"{name}.parquet"))
        if name == "transcripts":
            if kind == "bytes":
                frame["feature_name"] = frame["feature_name"].str.encode("utf-8")
        else:
            frame = frame[frame["label_id"] == frame.groupby("cell_id")["label_id"].transform("min")]
            frame = frame.drop(columns="label_id")
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / f"{name}.parquet")
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        file["matrix/barcodes"][:] = np.array([str(i + 1).encode() for i in range(60)])
    content = json.loads((folder / "experiment.xenium").read_text())
    (folder / "experiment.xenium").write_text(json.dumps(content | {"analysis_sw_version": "Xenium-1.0.1"}))

    bundle = read_bundle(folder)
    assert bundle.version == "1.0.1"
    assert list(bundle.cells()["cell_id"]) == [str(i + 1) for i in range(60)]
    assert list(bundle.counts().obs_names) == [str(i + 1) for i in range(60)]
    assert list(bundle.cells()["nucleus_count"]) == list(expected["nucleus_count"].clip(upper=1))
    transcripts = bundle.transcripts(["cell_id", "feature_name"])
    assert set(transcripts["cell_id"]) <= {*map(str, range(1, 61)), UNASSIGNED}
    assert transcripts["feature_name"].str.startswith("GENE").any()


def test_csv_in_place_of_parquet(folder: Path) -> None:
    expected = read_bundle(folder).cells()
    for name in ("cells", "nucleus_boundaries"):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        with gzip.open(folder / f"{name}.csv.gz", "wt") as stream:
            frame.to_csv(stream, index=False)
        (folder / f"{name}.parquet").unlink()
    pd.testing.assert_frame_equal(read_bundle(folder).cells(), expected)


def test_xeniumranger_gives_the_version(folder: Path) -> None:
    content = json.loads((folder / "experiment.xenium").read_text())
    content["xenium_ranger"] = {"version": "xenium-3.0.1.1"}
    (folder / "experiment.xenium").write_text(json.dumps(content))
    assert read_bundle(folder).version == "3.0.1.1"


@pytest.mark.parametrize("value", [None, 0, -1.0, "0.2125", True, float("inf")])
def test_unusable_pixel_size(folder: Path, value: object) -> None:
    content = json.loads((folder / "experiment.xenium").read_text()) | {"pixel_size": value}
    (folder / "experiment.xenium").write_text(json.dumps(content))
    with pytest.raises(UserError, match="pixel size") as caught:
        _ = read_bundle(folder).pixel_size
    assert "pixel_size" in str(caught.value.where)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("cells.parquet", "cells"),
        ("nucleus_boundaries.parquet", "cells"),
        ("cell_feature_matrix.h5", "counts"),
        ("transcripts.parquet", "transcripts"),
    ],
)
def test_missing_and_broken_files(folder: Path, name: str, call: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read") as caught:
        getattr(read_bundle(folder), call)()
    assert name in str(caught.value)
    (folder / name).unlink()
    (folder / "cells.csv.gz").unlink()
    (folder / "cells.zarr.zip").unlink()
    with pytest.raises(UserError, match="missing") as caught:
        getattr(read_bundle(folder), call)()
    assert str(folder) in str(caught.value)
    assert name.partition(".")[0] in str(caught.value)


def test_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"experiment\.xenium"):
        read_bundle(tmp_path)


def test_ragged_centroids() -> None:
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]], float) + np.array([1e4, 5])
    triangle = np.array([[0, 0], [3, 0], [0, 3]], float)
    line = np.array([[1, 1], [2, 2], [3, 3]], float)
    points = np.concatenate([square, triangle, line])
    start = polygon_starts(np.array([1] * 5 + [2] * 3 + [3] * 3))
    area, x, y = ragged_area_and_centroid(points[:, 0], points[:, 1], start)
    np.testing.assert_allclose(area, [4, 4.5, 0])
    np.testing.assert_allclose(x, [10001, 1, 2])
    np.testing.assert_allclose(y, [6, 1, 2])
    assert [len(v) for v in ragged_area_and_centroid([], [], np.array([], int))] == [0, 0, 0]


def test_real_bundle(real_data: Path) -> None:
    bundle = read_bundle(real_data / "xenium_v3.0.0_mouse_ileum_tiny")
    cells, counts = bundle.cells(), bundle.counts()
    assert (bundle.pixel_size, bundle.version) == (0.2125, "3.0.0.15")
    assert counts.shape == (23, 5006)
    assert cells["cell_id"].iloc[0] == "akkfpngo-1"
    np.testing.assert_array_equal(np.asarray(counts.X.sum(1)).ravel(), cells["transcript_counts"])
    nuclei = bundle.boundaries("nucleus")
    assert len(nuclei) == 535
    assert set(nuclei["cell_id"]) == set(cells["cell_id"])
    assert (bundle.boundaries("cell").groupby("cell_id").size() == 25).all()
    # cells.zarr.zip states the centroids of the nuclei before their outlines were simplified.
    assert np.abs(cells["nucleus_x_um"] - cells["x_centroid"]).max() < 5
    assert abs(cells["nucleus_x_um"].iloc[0] - 422.93) < 0.2
    assert abs(cells["nucleus_y_um"].iloc[0] - 289.88) < 0.2
    transcripts = bundle.transcripts()
    good = transcripts[(transcripts["qv"] >= 20) & transcripts["is_gene"]]
    per_cell = good.groupby("cell_id").size().reindex(cells["cell_id"], fill_value=0)
    np.testing.assert_array_equal(per_cell, cells["transcript_counts"])


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("bioc_v1.0.1_human_breast_rep1", "1.0.1"),
        ("moleculeexperiment_v1.0.2_mouse_brain", "1.0.2"),
        ("insitupy_v3.0.0.15_mouse_ileum_tiny_nucexp", "3.0.0.15"),
        ("nfcore_v3.0.0.15_mouse_ileum_tiny_multicellseg", "3.0.0.15"),
        ("milume_v4.0.0.19_human_ovary_tiny_nucexp", "4.0.0.19"),
    ],
)
def test_real_experiments(real_data: Path, tmp_path: Path, name: str, version: str) -> None:
    shutil.copy(real_data / "experiment_xenium" / f"{name}.json", tmp_path / "experiment.xenium")
    bundle = read_bundle(tmp_path)
    assert bundle.pixel_size == 0.2125
    assert bundle.version == version
