"""The run as SpatialData, read by its own library: cells lie on the picture where they should, at every level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apply_example import (
    CLASSES,
    CROSSED,
    FLAT,
    NO_OUTLINE,
    RADIUS,
    SHEET,
    table_of,
    write_run,
    write_slide,
    write_tables,
)
from nuclass.apply.outputs import write_outputs
from nuclass.slides.store import SlideStore

spatialdata = pytest.importorskip("spatialdata")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, Any]:
    folder = tmp_path_factory.mktemp("run")
    table = write_run(folder)
    write_outputs(folder, ["spatialdata"], store=folder / "he.ome.zarr", classes=SHEET)
    return folder, table, spatialdata.read_zarr(folder / "spatialdata.zarr")


def test_cells_lie_on_the_picture_at_every_level(run: tuple[Path, pd.DataFrame, Any]) -> None:
    from spatialdata.transformations import get_transformation

    folder, table, read = run
    image, nuclei = read["he"], read["nuclei"]
    with SlideStore(folder / "he.ome.zarr") as store:
        levels = store.levels
        assert len(image.keys()) == levels
    for name in ("cell 6", "cell 40"):
        place = table.set_index("cell_id").loc[name, ["x_um", "y_um"]].to_numpy(float)
        outline = nuclei.loc[name, "geometry"]
        assert outline.centroid.coords[0] == pytest.approx(place, abs=0.01)
        for level in range(levels - 1):
            pixels = image[f"scale{level}"]["image"]
            matrix = get_transformation(pixels, "global").to_affine_matrix(("x", "y"), ("x", "y"))
            dark = 255.0 - pixels.values.astype(float).mean(axis=0)
            dark -= dark.min()
            y, x = np.mgrid[: dark.shape[0], : dark.shape[1]] + 0.5
            um = matrix @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
            near = np.hypot(um[0] - place[0], um[1] - place[1]) < 4.5
            weight = dark.ravel() * near
            found = (um[:2] * weight).sum(axis=1) / weight.sum()
            assert found == pytest.approx(place, abs=0.12 * 2**level), f"{name}, level {level}"


def test_picture_is_that_of_the_store_filled_up_with_white(run: tuple[Path, pd.DataFrame, Any]) -> None:
    folder, _, read = run
    with SlideStore(folder / "he.ome.zarr") as store:
        step = 2 ** (store.levels - 1)
        for level in range(store.levels):
            pixels = np.moveaxis(read["he"][f"scale{level}"]["image"].values, 0, -1)
            height, width = store.level_shape(level)
            np.testing.assert_array_equal(pixels[:height, :width], store.region(0, 0, width, height, level))
            assert (pixels[height:] == 255).all()
            assert pixels.shape[0] == -(-store.shape[0] // step) * step // 2**level
    assert read["he"]["scale0"]["image"].coords["c"].values.tolist() == ["r", "g", "b"]


def test_table_annotates_the_shapes(run: tuple[Path, pd.DataFrame, Any]) -> None:
    _, table, read = run
    shown = table[table["status"] != "left_out"]
    cells, nuclei = read["cells"], read["nuclei"]
    assert cells.obs["cell_id"].tolist() == nuclei.index.tolist() == shown["cell_id"].tolist()
    assert cells.var_names.tolist() == list(CLASSES)
    matched, _ = spatialdata.join_spatialelement_table(
        sdata=read, spatial_element_names="nuclei", table_name="cells", how="inner"
    )
    assert len(matched["nuclei"]) == len(shown)
    values = spatialdata.get_values("class", sdata=read, element_name="nuclei", table_name="cells")
    assert values["class"].astype(object).fillna("").tolist() == shown["class"].tolist()
    box = spatialdata.bounding_box_query(
        read, axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[60, 60], target_coordinate_system="global"
    )
    inside = shown[(shown[["x_um", "y_um"]] < 60 - RADIUS * 0.4).all(axis=1)]
    assert set(inside["cell_id"]) <= set(box["cells"].obs["cell_id"])


def test_shapes_are_valid_and_circles_stand_for_what_has_no_outline(run: tuple[Path, pd.DataFrame, Any]) -> None:
    nuclei = run[2]["nuclei"]
    assert nuclei.geometry.is_valid.all()
    bare = [f"cell {i + 1}" for i in (NO_OUTLINE, FLAT)]
    assert nuclei.index[~nuclei["outlined"]].tolist() == bare
    assert nuclei.loc[bare, "geometry"].area.to_numpy() == pytest.approx(np.pi * 16, rel=0.03)
    assert nuclei.loc[f"cell {CROSSED + 1}", "geometry"].geom_type in ("Polygon", "MultiPolygon")


def test_positions_without_outlines_are_circles(tmp_path: Path) -> None:
    table = write_run(tmp_path, n=5, outlines=False)
    write_outputs(tmp_path, ["spatialdata"], store=tmp_path / "he.ome.zarr", classes=SHEET)
    nuclei = spatialdata.read_zarr(tmp_path / "spatialdata.zarr")["nuclei"]
    assert (nuclei["radius"] == 4.0).all()
    np.testing.assert_allclose(nuclei.geometry.x, table["x_um"].iloc[: len(nuclei)])


def test_no_cell_leaves_picture_and_an_empty_table(tmp_path: Path) -> None:
    write_tables(tmp_path, table_of(3))
    store = write_slide(tmp_path, np.empty((0, 2)))
    write_outputs(tmp_path, ["spatialdata"], store=store, classes=SHEET)
    read = spatialdata.read_zarr(tmp_path / "spatialdata.zarr")
    assert (list(read.shapes), read["cells"].n_obs) == ([], 0)
    assert "he" in read.images


def test_a_second_writing_replaces_the_first(run: tuple[Path, pd.DataFrame, Any]) -> None:
    folder = run[0]
    (folder / "spatialdata.zarr" / "stray").write_text("")
    write_outputs(folder, ["spatialdata"], store=folder / "he.ome.zarr", classes=SHEET)
    assert not (folder / "spatialdata.zarr" / "stray").exists()
