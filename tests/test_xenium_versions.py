"""One content in the layouts of all versions of the analysis: it is read the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bundle_example import example
from nuclass.core.errors import UserError
from nuclass.synthetic.bundle import BundleData, write_bundle
from nuclass.synthetic.raster import area_and_centroid
from nuclass.xenium.analysis import clusterings, group_rows, read_clusters
from nuclass.xenium.checks import check_bundle, worst_verdict
from nuclass.xenium.reader import UNASSIGNED, Bundle, read_bundle
from xenium_versions import VERSIONS, clustered, only_zarr

ONE_NUCLEUS = ("1.0.1", "1.0.2", "1.3.0.5", "1.7.1.0")
NUMBERS = ("1.0.1", "1.0.2")


@pytest.fixture(scope="module")
def data() -> BundleData:
    return example()


@pytest.fixture(scope="module")
def reference(data: BundleData, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("reference")
    write_bundle(folder, "lung_9", data)
    return read_bundle(folder)


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest, reference: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = Path(shutil.copytree(reference.folder, tmp_path_factory.mktemp("version") / "bundle"))
    (folder / "cells.csv.gz").unlink()
    VERSIONS[request.param](folder)
    return read_bundle(folder)


def test_the_version_is_told(version: Bundle) -> None:
    assert version.version in VERSIONS


def test_cells_are_the_same(version: Bundle, reference: Bundle, data: BundleData) -> None:
    cells, expected = version.cells(), reference.cells()
    if version.version in NUMBERS:
        assert list(cells["cell_id"]) == [str(i + 1) for i in range(60)]
    else:
        assert list(cells["cell_id"]) == data.cell_id
    for column in ("x_centroid", "y_centroid", "transcript_counts", "control_counts", "cell_area", "nucleus_area"):
        np.testing.assert_allclose(cells[column], expected[column])
    count = expected["nucleus_count"]
    assert list(cells["nucleus_count"]) == list(count.clip(upper=1) if version.version in ONE_NUCLEUS else count)
    _, centroid = area_and_centroid(data.nucleus_polygons)
    np.testing.assert_allclose(cells[["nucleus_x_um", "nucleus_y_um"]], centroid, atol=1e-3)
    without = np.isnan(data.nucleus_polygons).any((1, 2))
    assert list(cells["centroid"]) == list(np.where(without, "cell", "nucleus"))


def test_counts_are_the_same(version: Bundle, reference: Bundle) -> None:
    counts, expected = version.counts(), reference.counts()
    assert (counts.X.dtype.kind, counts.X.format) == ("i", "csr")
    assert (counts.X != expected.X).nnz == 0
    assert list(counts.var_names) == list(expected.var_names)
    assert list(counts.obs_names) == list(version.cells()["cell_id"])


def test_outlines_are_the_same(version: Bundle, reference: Bundle) -> None:
    got, expected = version.boundaries("cell"), reference.boundaries("cell")
    if version.version not in NUMBERS:
        np.testing.assert_array_equal(got[["vertex_x", "vertex_y"]], expected[["vertex_x", "vertex_y"]])
        assert list(got["cell_id"]) == list(expected["cell_id"])
    assert set(version.boundaries("nucleus")["cell_id"]) <= set(version.cells()["cell_id"])


def test_transcripts_have_text(version: Bundle) -> None:
    transcripts = version.transcripts(["cell_id", "feature_name", "qv"])
    assert set(transcripts["cell_id"]) <= {*version.cells()["cell_id"], UNASSIGNED}
    assert (transcripts["cell_id"] == UNASSIGNED).any()
    assert transcripts["feature_name"].str.startswith("GENE").any()
    pieces = list(version.transcript_batches(["cell_id", "feature_name", "qv"], rows=500))
    assert len(pieces) == -(-len(transcripts) // 500)
    joined = pd.concat([piece.to_pandas() for piece in pieces], ignore_index=True)
    pd.testing.assert_frame_equal(joined, transcripts, check_dtype=False)


def test_clusters_cover_fewer_cells(version: Bundle) -> None:
    assert clusterings(version) == ["graphclust"]
    number = read_clusters(version)
    assert list(number.index) == list(version.cells()["cell_id"])
    assert list(number.fillna(0)) == list(clustered(60))
    assert number.isna().sum() == (clustered(60) == 0).sum() > 0
    with pytest.raises(UserError, match=r"no clustering 'graphclus'\. Did you mean 'graphclust'\?"):
        read_clusters(version, "graphclus")


def test_dapi_image(version: Bundle) -> None:
    focus = version.morphology_focus()
    assert focus is not None
    assert focus.is_file()
    assert ("ch0000" in focus.name) == version.version.startswith("4")


def test_all_rules_hold(version: Bundle) -> None:
    checks = check_bundle(version, rows=500)
    assert {c.verdict for c in checks} <= {"pass"}, [c for c in checks if c.verdict != "pass"]
    assert worst_verdict(checks) == "pass"


def test_dapi_image_by_its_name(reference: Bundle, tmp_path: Path) -> None:
    shutil.copy(reference.folder / "experiment.xenium", tmp_path)
    assert read_bundle(tmp_path).morphology_focus() is None
    for name in ("morphology_mip.ome.tif", "morphology_focus.ome.tif", "morphology_focus/ch0000_stain.ome.tif"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        assert read_bundle(tmp_path).morphology_focus() == file


def test_real_zarr_outlines_are_those_of_the_tables(real_data: Path, tmp_path: Path) -> None:
    real = real_data / "xenium_v3.0.0_mouse_ileum_tiny"
    for file in real.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    only_zarr(tmp_path)
    for kind in ("nucleus", "cell"):
        got = read_bundle(tmp_path).boundaries(kind)  # type: ignore[arg-type]
        pd.testing.assert_frame_equal(got, read_bundle(real).boundaries(kind), check_dtype=False)  # type: ignore[arg-type]


def test_real_clusters_of_both_files(real_data: Path, tmp_path: Path) -> None:
    real = read_bundle(real_data / "xenium_v3.0.0_mouse_ileum_tiny")
    for file in real.folder.iterdir():
        if file.is_file() and file.name != "analysis.tar.gz":
            (tmp_path / file.name).symlink_to(file)
    other = read_bundle(tmp_path)
    assert clusterings(real) == clusterings(other)
    assert len(clusterings(real)) == 10
    for name in clusterings(real):
        pd.testing.assert_series_equal(read_clusters(real, name), read_clusters(other, name))
    assert read_clusters(real).notna().sum() == 20


@pytest.mark.parametrize(
    ("indices", "pointer", "groups"),
    [
        ([1, 2, 0, 3, 0, 0], [0, 2], [[1, 2], [0, 3]]),
        ([0, 2, 1, 3, 0, 0], [0, 2], [[0, 2], [1, 3]]),
        ([1, 2, 0, 0], [0, 2], [[1, 2], [0]]),
        ([0, 2, 0, 0], [0, 2], [[0, 2], []]),
        ([0, 2, 1, 0], [0, 2, 3], [[0, 2], [1]]),
        ([2, 3], [0], [[2, 3]]),
    ],
)
def test_padding_of_the_groups(indices: list[int], pointer: list[int], groups: list[list[int]]) -> None:
    got = group_rows(np.array(indices), np.array(pointer), len(groups))
    assert [list(group) for group in got] == groups


def test_clusters_of_other_cells(reference: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "bundle"))
    with pytest.raises(UserError, match="The bundle has no analysis"):
        read_clusters(read_bundle(folder))
    file = folder / "analysis" / "clustering" / "gene_expression_graphclust" / "clusters.csv"
    file.parent.mkdir(parents=True)
    file.write_text("Barcode,Cluster\naaaaaaaa-9,1\n")
    with pytest.raises(UserError, match=r"cells that the bundle does not have[\s\S]*aaaaaaaa-9 \(1 of 1\)"):
        read_clusters(read_bundle(folder))
    shutil.rmtree(folder / "analysis")
    (folder / "analysis.tar.gz").write_bytes(b"\x1f\x8b\x08\0cut")
    with pytest.raises(UserError, match=r"cannot be read[\s\S]*analysis.tar.gz"):
        read_clusters(read_bundle(folder))


@pytest.mark.parametrize("kind", ["large_string", "string_view", "large_binary", "dictionary"])
@pytest.mark.parametrize("compression", ["brotli", "gzip"])
def test_text_of_other_writers(reference: Bundle, tmp_path: Path, kind: str, compression: str) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "bundle"))
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file).replace_schema_metadata(None)
        text = table["cell_id"].combine_chunks()
        coded = text.dictionary_encode() if kind == "dictionary" else text.cast(getattr(pa, kind)())
        table = table.set_column(table.column_names.index("cell_id"), "cell_id", coded)
        pq.write_table(table, file, compression=compression, row_group_size=97)
    bundle = read_bundle(folder)
    pd.testing.assert_frame_equal(bundle.cells(), reference.cells())
    assert (bundle.boundaries("nucleus")["cell_id"] == reference.boundaries("nucleus")["cell_id"]).all()
    assert worst_verdict(check_bundle(bundle)) == "pass"
