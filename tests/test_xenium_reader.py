"""The bundle reader and the alignment, on written bundles, on old layouts, on real data and on broken input."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle_example import example
from nuclass.core.errors import UserError
from nuclass.synthetic.bundle import BundleData, write_bundle
from nuclass.synthetic.raster import area_and_centroid
from nuclass.xenium.polygons import closed_rings, crosses_itself, polygon_starts, ragged_area_and_centroid
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
    assert (bundle.boundaries("cell")["cell_id"].value_counts() == 25).all()
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


def set_value(folder: Path, table: str, column: str, row: int, value: object) -> None:
    frame = pd.read_parquet(folder / f"{table}.parquet")
    frame[column] = frame[column].astype(object if isinstance(value, str) else "float64")
    frame.loc[row, column] = value
    frame.to_parquet(folder / f"{table}.parquet", index=False)


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("cells", "x_centroid", np.nan, "A coordinate of the bundle is not a number"),
        ("cells", "y_centroid", np.inf, "A coordinate of the bundle is not a number"),
        ("nucleus_boundaries", "vertex_y", -np.inf, "A coordinate of the bundle is not a number"),
        ("cells", "transcript_counts", np.nan, "A count of the bundle is not a whole number"),
        ("cells", "control_probe_counts", -1.0, "A count of the bundle is not a whole number"),
        ("cells", "transcript_counts", 2.5, "A count of the bundle is not a whole number"),
    ],
)
def test_values_that_are_no_numbers(folder: Path, table: str, column: str, value: float, message: str) -> None:
    set_value(folder, table, column, 3, value)
    cell = pd.read_parquet(folder / f"{table}.parquet")["cell_id"][3]
    with pytest.raises(UserError) as caught:
        read_bundle(folder).cells()
    assert caught.value.what == message
    assert caught.value.where == f"{folder / f'{table}.parquet'}, column {column}, row 4, cell {cell}"
    assert str(caught.value.found).startswith(str(value))


def test_text_among_the_numbers(folder: Path) -> None:
    frame = pd.read_parquet(folder / "cells.parquet").astype({"x_centroid": object})
    frame.loc[3, "x_centroid"] = "left"
    (folder / "cells.parquet").unlink()
    (folder / "cells.csv.gz").unlink()
    frame.to_csv(folder / "cells.csv", index=False)
    with pytest.raises(
        UserError, match=r"A value of the bundle is not a number[\s\S]*column x_centroid, row 4[\s\S]*'left'"
    ):
        read_bundle(folder).cells()


def test_no_cells_and_a_cell_twice(folder: Path) -> None:
    cells = pd.read_parquet(folder / "cells.parquet")
    cells.head(0).to_parquet(folder / "cells.parquet", index=False)
    with pytest.raises(UserError) as caught:
        read_bundle(folder).cells()
    assert (caught.value.what, caught.value.where) == ("The bundle has no cells", folder / "cells.parquet")
    pd.concat([cells, cells.tail(1)]).to_parquet(folder / "cells.parquet", index=False)
    with pytest.raises(UserError) as caught:
        read_bundle(folder).cells()
    assert caught.value.what == "A cell id stands twice in the bundle"
    assert caught.value.where == f"{folder / 'cells.parquet'}, column cell_id"
    assert caught.value.found == cells["cell_id"].iloc[-1]


@pytest.mark.parametrize(
    ("table", "column", "call"),
    [
        ("cells", "x_centroid", "cells"),
        ("cells", "transcript_counts", "cells"),
        ("nucleus_boundaries", "vertex_x", "cells"),
        ("nucleus_boundaries", "cell_id", "cells"),
    ],
)
def test_missing_columns(folder: Path, table: str, column: str, call: str) -> None:
    file = folder / f"{table}.parquet"
    frame = pd.read_parquet(file).drop(columns=column)
    frame.to_parquet(file, index=False)
    with pytest.raises(UserError) as caught:
        getattr(read_bundle(folder), call)()
    assert caught.value.what == "A table of the bundle lacks columns"
    assert (caught.value.where, caught.value.expected) == (file, column)
    assert caught.value.found == ", ".join(frame.columns)


def test_missing_column_of_the_transcripts(folder: Path) -> None:
    with pytest.raises(UserError, match=r"lacks columns[\s\S]*expected: +gene_name"):
        read_bundle(folder).transcripts(["cell_id", "gene_name"])
    with pytest.raises(UserError, match=r"lacks columns[\s\S]*expected: +gene_name"):
        next(read_bundle(folder).transcript_batches(["cell_id", "gene_name"]))


PAGE = b"<!DOCTYPE html><html><title>403 Forbidden</title></html>"


@pytest.mark.parametrize(
    "name", ["cells.parquet", "cells.csv.gz", "cells.csv", "nucleus_boundaries.parquet", "cell_feature_matrix.h5"]
)
def test_a_web_page_in_place_of_a_file(folder: Path, name: str) -> None:
    if name.startswith("cells.c"):
        (folder / "cells.parquet").unlink()
        (folder / "cells.csv.gz").unlink()
    (folder / name).write_bytes(PAGE)
    with pytest.raises(UserError) as caught:
        read_bundle(folder).counts()
    assert caught.value.what == "A file of the bundle is a web page"
    assert caught.value.where == folder / name
    assert caught.value.found == PAGE.decode()


def test_a_web_page_in_place_of_the_experiment(folder: Path) -> None:
    (folder / "experiment.xenium").write_bytes(PAGE)
    with pytest.raises(UserError, match="A file of the bundle is a web page"):
        read_bundle(folder)
    (folder / "experiment.xenium").write_text("[1]")
    with pytest.raises(UserError, match="does not hold a JSON object"):
        read_bundle(folder)


def test_a_cut_csv(folder: Path) -> None:
    (folder / "cells.parquet").unlink()
    content = (folder / "cells.csv.gz").read_bytes()
    (folder / "cells.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UserError, match=r"A table of the bundle cannot be read[\s\S]*cells\.csv\.gz[\s\S]*end-of-stream"
    ):
        read_bundle(folder).cells()
    plain = gzip.decompress(content)
    (folder / "cells.csv.gz").unlink()
    lines = plain.splitlines(keepends=True)
    first, second, *_ = lines[29].split(b",")
    for cut, message in (
        (lines[29][:5], r"cells\.csv[\s\S]*EOF inside string"),
        (first + b"," + second, r"column y_centroid, row 29"),
    ):
        (folder / "cells.csv").write_bytes(b"".join(lines[:29]) + cut)
        with pytest.raises(UserError, match=message):
            read_bundle(folder).cells()


def test_a_broken_zarr(folder: Path) -> None:
    (folder / "nucleus_boundaries.parquet").unlink()
    content = (folder / "cells.zarr.zip").read_bytes()
    (folder / "cells.zarr.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"A file of the bundle cannot be read[\s\S]*cells\.zarr\.zip"):
        read_bundle(folder).cells()
    with zipfile.ZipFile(folder / "cells.zarr.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match=r"A file of the bundle cannot be read[\s\S]*cells\.zarr\.zip"):
        read_bundle(folder).cells()


def rewrite(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        values = change(file[f"matrix/{name}"][:])
        del file[f"matrix/{name}"]
        file[f"matrix/{name}"] = values


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("barcodes", lambda v: np.append(v[1:], b"zzzz-1"), "1 of 60 cells have no row in the feature matrix"),
        ("barcodes", lambda v: np.append(v[1:], v[1]), "A cell id stands twice in the feature matrix"),
        ("barcodes", lambda v: v[1:], "The parts of the feature matrix do not fit together"),
        ("indptr", lambda v: v[:-1], "The parts of the feature matrix do not fit together"),
        ("data", lambda v: v[:-3], "The parts of the feature matrix do not fit together"),
        ("indices", lambda v: v + 1000, "The feature matrix names features that it does not have"),
        ("data", lambda v: v + 0.5, "A count of genes is not a whole number"),
        ("features/feature_type", lambda v: np.full(len(v), b"Protein"), "The feature matrix holds no genes"),
    ],
)
def test_a_matrix_that_does_not_fit(
    folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    rewrite(folder, name, change)
    with pytest.raises(UserError) as caught:
        read_bundle(folder).counts()
    assert caught.value.what == message
    assert str(caught.value.where).startswith(str(folder / "cell_feature_matrix.h5"))


def test_barcodes_of_no_cell_are_left_out(folder: Path) -> None:
    expected = read_bundle(folder).counts()
    cells = pd.read_parquet(folder / "cells.parquet")
    cells.tail(40).to_parquet(folder / "cells.parquet", index=False)
    counts = read_bundle(folder).counts()
    assert counts.n_obs == 40
    assert (expected.X[20:] != counts.X).nnz == 0


def ring(x: float, y: float, radius: float, n: int, closed: bool = True) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    points = np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)])
    return np.vstack([points, points[:1]]) if closed else points


@given(
    st.lists(st.lists(st.tuples(st.integers(3, 24), st.integers(0, 3)), min_size=1, max_size=4), min_size=1, max_size=6)
)
def test_closed_rings_are_found(cells: list[list[tuple[int, int]]]) -> None:
    """Several closed rings in one outline, each followed by copies of its first vertex as padding."""
    points, start, expected = [], [], []
    row = 0
    for c, rings in enumerate(cells):
        start.append(row)
        for r, (n, padding) in enumerate(rings):
            one = ring(100 * c, 10 * r, 2, n)
            expected.append((row, n + 1))
            points += [one, np.repeat(one[:1], padding, 0)]
            row += n + 1 + padding
    xy = np.concatenate(points)
    begin, length = closed_rings(xy[:, 0], xy[:, 1], np.array(start))
    assert list(zip(begin.tolist(), length.tolist(), strict=True)) == expected


def test_open_and_pinched_rings() -> None:
    open_ring = ring(0, 0, 1, 8, closed=False)
    begin, length = closed_rings(open_ring[:, 0], open_ring[:, 1], np.array([0]))
    assert (begin.tolist(), length.tolist()) == ([0], [8])
    # Two squares that share their first vertex.
    pinched = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0], [-3, 0], [-3, -3], [0, -3], [0, 0]], float)
    begin, length = closed_rings(pinched[:, 0], pinched[:, 1], np.array([0]))
    area, _, _ = ragged_area_and_centroid(pinched[:, 0], pinched[:, 1], begin)
    assert begin.tolist() == [0, 5]
    assert length.tolist() == [5, 4]
    assert area[0] == 1
    assert [v.tolist() for v in closed_rings(np.array([]), np.array([]), np.array([], int))] == [[], []]


def test_rings_that_cross_themselves() -> None:
    bow_tie = np.array([[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]], float)
    joined = np.vstack([ring(0, 0, 2, 12, closed=False), ring(-6, 1, 2, 12, closed=False)])
    concave = np.array([[0, 0], [4, 0], [4, 4], [2, 1], [0, 4], [0, 0]], float)
    all_rings = [bow_tie, joined, concave, ring(5, 5, 3, 24), ring(1, 1, 1, 3)]
    length = np.array([len(r) for r in all_rings])
    xy = np.concatenate(all_rings)
    crossing = crosses_itself(xy[:, 0], xy[:, 1], np.append(0, np.cumsum(length)[:-1]), length)
    assert crossing.tolist() == [True, True, False, False, False]


def test_nuclei_joined_in_one_outline_give_the_cell_its_own_centroid(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without labels and without closing vertices the nuclei cannot be told apart: said, not guessed."""
    nuclei = pd.read_parquet(folder / "nucleus_boundaries.parquet")
    two = nuclei.groupby("cell_id")["label_id"].nunique().idxmax()
    last = ~nuclei.duplicated("label_id", keep="last")
    nuclei = nuclei[~(last & (nuclei["cell_id"] == two))].drop(columns="label_id")
    nuclei.to_parquet(folder / "nucleus_boundaries.parquet", index=False)
    cells = read_bundle(folder).cells().set_index("cell_id")
    assert cells.loc[two, "centroid"] == "cell"
    assert np.isnan(cells.loc[two, "nucleus_x_um"])
    assert (cells.drop(index=two)["centroid"] == "nucleus").sum() == cells["nucleus_count"].gt(0).sum() - 1
    assert f"the nucleus outlines of 1 cells cross themselves, the first is {two}" in caplog.text
