"""The bundle writer: layout, identities between files, other readers, equal bytes."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import h5py
import numcodecs.blosc
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

from bundle_example import circles, example
from nuclass.core.files import read_json, sha256
from nuclass.synthetic import bundle_files
from nuclass.synthetic.bundle import cell_ids, write_bundle, write_he
from nuclass.synthetic.identifiers import decode_cell_ids, encode_cell_id
from nuclass.synthetic.images import halve
from nuclass.synthetic.raster import area_and_centroid, rasterize

SLIDE = "lung_9"


def write_all(folder: Path, seed: int = 7) -> Path:
    image = np.random.default_rng(seed).integers(0, 255, (700, 1300, 3), dtype=np.uint8)
    folder.mkdir(parents=True)
    write_he(folder / f"{SLIDE}_he_image.ome.tif", image, 0.2125, seed)
    (folder / f"{SLIDE}_he_imagealignment.csv").write_bytes(b"0.01,1.2884,3\r\n-1.2884,0.01,890.5\r\n0,0,1")
    write_bundle(folder, SLIDE, example(seed=seed))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("bundles") / "one")


def test_same_input_same_bytes(bundle: Path, tmp_path: Path) -> None:
    again = write_all(tmp_path / "two")
    first = {p.relative_to(bundle).as_posix(): sha256(p) for p in bundle.rglob("*") if p.is_file()}
    assert first == {p.relative_to(again).as_posix(): sha256(p) for p in again.rglob("*") if p.is_file()}
    assert len(first) == 15


def test_threads_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of a real slide has many blocks a chunk; threads would write them as they finish."""
    # Where zarr was imported, it has turned them off for all.
    monkeypatch.setattr(numcodecs.blosc, "use_threads", True)
    mask = np.zeros((1024, 1024), np.uint32)
    for number, (row, column) in enumerate(np.random.default_rng(0).integers(0, 1000, (200, 2))):
        mask[row : row + 20, column : column + 20] = number
    written = set()
    for _ in range(30):
        stream = io.BytesIO()
        store = bundle_files._ZarrZip(stream)
        store.array("mask", mask, cname="zstd")
        store.close()
        written.add(stream.getvalue())
    assert len(written) == 1


def test_inventory_lists_every_file(bundle: Path) -> None:
    inventory = read_json(bundle / "bundle.json")
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"bundle.json"}
    assert set(inventory["files"]) == files
    assert (inventory["slide"], inventory["source"], inventory["xoa_version"]) == (SLIDE, "synthetic", "3.0.0.15")
    assert inventory["he"] in files
    assert inventory["alignment"] in files


def test_identities_between_the_files(bundle: Path) -> None:
    cells = pd.read_parquet(bundle / "cells.parquet").set_index("cell_id")
    transcripts = pd.read_parquet(bundle / "transcripts.parquet")
    good = transcripts[(transcripts["qv"] >= 20) & (transcripts["cell_id"] != "UNASSIGNED")]
    genes = good[good["is_gene"]].groupby("cell_id").size().reindex(cells.index, fill_value=0)
    everything = good.groupby("cell_id").size().reindex(cells.index, fill_value=0)
    assert (cells["transcript_counts"] == genes).all()
    assert (cells["total_counts"] == everything).all()
    assert (cells.filter(regex="_counts$").drop(columns="total_counts").sum(axis=1) == cells["total_counts"]).all()
    for category, column in {
        "negative_control_probe": "control_probe_counts",
        "negative_control_codeword": "control_codeword_counts",
        "unassigned_codeword": "unassigned_codeword_counts",
    }.items():
        assert cells[column].sum() == (good["codeword_category"] == category).sum()
    csv = pd.read_csv(bundle / "cells.csv.gz", index_col="cell_id")
    pd.testing.assert_frame_equal(csv, cells, check_dtype=False)


def test_matrix_is_read_by_scanpy(bundle: Path) -> None:
    import scanpy

    cells = pd.read_parquet(bundle / "cells.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = scanpy.read_10x_h5(bundle / "cell_feature_matrix.h5", gex_only=False)
    assert list(data.obs_names) == list(cells["cell_id"])
    genes = (data.var["feature_types"] == "Gene Expression").to_numpy()
    np.testing.assert_array_equal(np.asarray(data.X[:, genes].sum(1)).ravel(), cells["transcript_counts"])
    np.testing.assert_array_equal(np.asarray(data.X.sum(1)).ravel(), cells["total_counts"])
    assert set(data.var["feature_types"]) == {
        "Gene Expression",
        "Negative Control Probe",
        "Negative Control Codeword",
        "Unassigned Codeword",
        "Genomic Control",
        "Deprecated Codeword",
    }


def test_spatialdata_reads_the_whole_bundle(bundle: Path) -> None:
    reader = pytest.importorskip("spatialdata_io")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = reader.xenium(bundle)
    assert not [w for w in caught if "match" in str(w.message) or "version" in str(w.message)]
    assert set(data.images) == {"he_image", "morphology_focus"}
    assert set(data.labels) == {"cell_labels", "nucleus_labels"}
    assert len(data.shapes["cell_boundaries"]) == 60
    assert len(data.shapes["nucleus_boundaries"]) == 60 - 6 + 1
    assert len(data.points["transcripts"]) == 1800
    assert data.tables["table"].shape == (60, 25)
    assert (data.shapes["nucleus_boundaries"]["cell_id"].value_counts() == 2).sum() == 1


def test_masks_agree_with_the_outlines(bundle: Path) -> None:
    group = zarr.open(zarr.storage.ZipStore(bundle / "cells.zarr.zip", read_only=True), mode="r")
    cells = pd.read_parquet(bundle / "cells.parquet")
    assert [encode_cell_id(int(a), int(b)) for a, b in group["cell_id"][:]] == list(cells["cell_id"])
    mask = group["masks/1"][:]
    assert mask.shape == (700, 900)
    area = np.bincount(mask.ravel(), minlength=61)[1:] * 0.2125**2
    np.testing.assert_allclose(area, cells["cell_area"], rtol=0.02)
    assert int(group["masks/0"][:].max()) == group["polygon_sets/0/cell_index"].shape[0] == 55
    summary = pd.DataFrame(group["cell_summary"][:], columns=group["cell_summary"].attrs["column_names"])
    np.testing.assert_allclose(summary["nucleus_area"], cells["nucleus_area"].fillna(0))
    np.testing.assert_array_equal(summary["nucleus_count"], cells["nucleus_count"])


def test_layout_is_that_of_a_real_bundle(bundle: Path, real_data: Path) -> None:
    real = real_data / "xenium_v3.0.0_mouse_ileum_tiny"
    for name in ("cells", "transcripts", "nucleus_boundaries", "cell_boundaries"):
        ours, theirs = (pq.read_schema(folder / f"{name}.parquet") for folder in (bundle, real))
        assert ours.equals(theirs.remove_metadata()), name
    ours, theirs = (json.loads((folder / "experiment.xenium").read_text()) for folder in (bundle, real))
    assert list(ours) == list(theirs)
    assert len(ours) == 45
    assert list(pd.read_csv(bundle / "metrics_summary.csv")) == list(pd.read_csv(real / "metrics_summary.csv"))
    with (
        h5py.File(bundle / "cell_feature_matrix.h5") as mine,
        h5py.File(real / "cell_feature_matrix.h5") as original,
    ):
        assert set(mine.attrs) == set(original.attrs)
        names: list[str] = []
        original.visit(names.append)
        for name in names:
            if isinstance(original[name], h5py.Dataset):
                assert mine[name].dtype.kind == original[name].dtype.kind, name
                assert mine[name].compression == original[name].compression, name
                if original[name].dtype.kind != "S":
                    assert mine[name].dtype == original[name].dtype, name


def test_images_are_pyramids(bundle: Path) -> None:
    with tifffile.TiffFile(bundle / "morphology.ome.tif") as file:
        series = file.series[0]
        assert file.is_ome
        assert (series.axes, series.shape) == ("ZYX", (2, 700, 900))
        assert [level.shape for level in series.levels] == [(2, 700, 900), (2, 350, 450)]
        assert np.array_equal(series.levels[1].asarray()[0], halve(series.asarray()[0]))
    with tifffile.TiffFile(bundle / "morphology_focus" / "morphology_focus_0000.ome.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == ("YX", (700, 900))
        assert 'PhysicalSizeX="0.2125"' in (file.ome_metadata or "")
    with tifffile.TiffFile(bundle / f"{SLIDE}_he_image.ome.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == ("YXS", (700, 1300, 3))
        assert len(file.series[0].levels) == 3
        assert not {"DateTime"} & {tag.name for tag in file.pages[0].tags}


def test_openslide_reads_the_he(bundle: Path) -> None:
    openslide = pytest.importorskip("openslide")
    path = bundle / f"{SLIDE}_he_image.ome.tif"
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (1300, 700)
        region = np.asarray(slide.read_region((1000, 100), 0, (64, 32)).convert("RGB"))
    assert np.abs(region.astype(int) - tifffile.imread(path)[100:132, 1000:1064].astype(int)).max() <= 2


def test_cell_ids_follow_10x() -> None:
    assert encode_cell_id(178650478) == "akkfpngo-1"
    ids = cell_ids(500, 3)
    assert ids == sorted(set(ids)) == cell_ids(500, 3) != cell_ids(500, 4)
    assert [encode_cell_id(int(a), int(b)) for a, b in decode_cell_ids(ids)] == ids


def test_polygons_far_from_the_origin() -> None:
    circle = circles(np.array([[1e5, 2e5]]), np.array([4.0]), 200)
    area, centroid = area_and_centroid(circle)
    np.testing.assert_allclose(area, np.pi * 16, rtol=1e-3)
    np.testing.assert_allclose(centroid, [[1e5, 2e5]], atol=1e-6)


def test_a_pixel_belongs_to_the_polygon_that_holds_its_centre() -> None:
    square = np.array([[[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0], [1.0, 1.0]]])
    expected = np.zeros((6, 5), np.uint32)
    expected[1:3, 1:4] = 1
    assert np.array_equal(rasterize(square, (6, 5)), expected)
    assert np.array_equal(rasterize(square + 0.49, (6, 5)), expected)
    outside = rasterize(square + np.array([3.0, 4.0]), (6, 5))
    assert outside.sum() == 1
    assert outside[5, 4] == 1


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    data = example()
    data.transcripts["feature_name"] = "NOPE"
    with pytest.raises(ValueError, match="not a feature"):
        write_bundle(tmp_path, SLIDE, data)
    with pytest.raises(ValueError, match="expected uint8"):
        write_he(tmp_path / "unused.tif", np.zeros((4, 4), np.uint8), 0.25)
