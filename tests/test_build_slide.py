"""A slide from bundle to files: the cells' places, the reasons for leaving some out, the measured alignment."""

from __future__ import annotations

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy.sparse import csr_matrix

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_COLUMNS
from nuclass.slides.alignment import measure_alignment, red_density
from nuclass.slides.build import build_cells_table, funnel
from nuclass.slides.geometry import Frames
from nuclass.slides.overlay import choose_fields, draw_overlay, outlines_px
from nuclass.slides.store import SlideStore
from nuclass.slides.writer import write_store

QC = {
    "min_transcripts": 10,
    "min_genes": 5,
    "max_control_fraction": 0.1,
    "require_nucleus": True,
    "max_off_slide": 0.5,
}
PIXEL = 0.2125


@dataclass
class FakeBundle:
    table: pd.DataFrame
    matrix: np.ndarray

    def cells(self) -> pd.DataFrame:
        return self.table.copy()

    def counts(self) -> anndata.AnnData:
        return anndata.AnnData(csr_matrix(self.matrix), obs=pd.DataFrame(index=self.table["cell_id"].astype(str)))


def bundle_at(nuclei_um: np.ndarray, shift_um=(0.0, 0.0)) -> FakeBundle:
    """Healthy cells whose nuclei are said to lie at ``nuclei_um + shift_um``."""
    n = len(nuclei_um)
    said = nuclei_um + np.asarray(shift_um)
    table = pd.DataFrame(
        {
            "cell_id": [f"c{i}" for i in range(n)],
            "x_centroid": said[:, 0] + 0.7,
            "y_centroid": said[:, 1] - 0.4,
            "transcript_counts": 50,
            "control_counts": 0,
            "cell_area": 60.0,
            "nucleus_area": 30.0,
            "nucleus_count": 1,
            "nucleus_x_um": said[:, 0],
            "nucleus_y_um": said[:, 1],
        }
    )
    return FakeBundle(table, np.ones((n, 12), int))


def matrix_of(angle: float, scale: float, offset: tuple[float, float], mirrored: bool) -> np.ndarray:
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * rotation @ np.diag([1, -1 if mirrored else 1])
    matrix[:2, 2] = offset
    return matrix


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "mirrored"])
def slide(request, tmp_path_factory):
    """An H&E of 900 x 1100 px at 0.274 um/px with 300 nuclei drawn where the frames say."""
    folder = tmp_path_factory.mktemp("slide")
    rng = np.random.default_rng(5)
    frames = Frames(matrix_of(-88.5, 1.2894, (300.0, 1500.0), request.param), PIXEL, 0.25)
    height, width = 900, 1100
    grid = np.stack(np.meshgrid(np.arange(40, width - 30, 52), np.arange(40, height - 30, 50)), -1).reshape(-1, 2)
    he = grid + rng.uniform(-12, 12, grid.shape)
    image = np.full((height, width, 3), (225.0, 170.0, 205.0)) + rng.normal(0, 6, (height, width, 3))
    y, x = np.mgrid[:height, :width] + 0.5
    for cx, cy in he:
        window = (slice(max(int(cy) - 20, 0), int(cy) + 20), slice(max(int(cx) - 20, 0), int(cx) + 20))
        soft = np.clip(12 - np.hypot(x[window] - cx, y[window] - cy), 0, 1)[..., None]
        image[window] = image[window] * (1 - soft) + np.array([95.0, 70.0, 140.0]) * soft
    path = folder / "he.ome.tif"
    tifffile.imwrite(path, np.clip(image, 0, 255).astype(np.uint8), photometric="rgb", tile=(128, 128))
    info = write_store(path, frames, folder / "he.ome.zarr", tile=64, shard=256, levels=4)
    return frames, frames.he_to_um(he), (height, width), info, folder


def test_cells_are_placed_on_their_nuclei(slide):
    frames, nuclei, he_shape, _, _ = slide
    table = build_cells_table(bundle_at(nuclei), frames, he_shape, QC)
    assert tuple(table.columns) == CELL_COLUMNS
    assert funnel(table) == {
        "total": len(nuclei), "no_nucleus": 0, "low_counts": 0, "few_genes": 0, "control_probes": 0, "off_slide": 0,
        "kept": len(nuclei),
    }  # fmt: skip
    np.testing.assert_allclose(table[["x_um", "y_um"]], nuclei)
    np.testing.assert_allclose(table[["x_morph", "y_morph"]], nuclei / PIXEL)
    np.testing.assert_allclose(frames.px_to_um(table[["x_px", "y_px"]]), nuclei)
    np.testing.assert_allclose(table["x_px"], table["x_he"] * frames.mpp_he / 0.25)
    np.testing.assert_allclose(table["cell_x_um"], nuclei[:, 0] + 0.7)


def test_each_reason_is_given_in_order(slide):
    frames, nuclei, he_shape, _, _ = slide
    bundle = bundle_at(nuclei)
    table, matrix = bundle.table, bundle.matrix
    table.loc[[0, 1], ["nucleus_x_um", "nucleus_y_um", "nucleus_area"]] = np.nan
    table.loc[[0, 1], "nucleus_count"] = 0
    table.loc[[1, 2], "transcript_counts"] = 9
    matrix[3, 4:] = 0
    table.loc[4, "control_counts"] = 6
    table.loc[5, "control_counts"] = 5
    off = frames.he_to_um([[-50.0, 400.0], [he_shape[1] - 1.0, he_shape[0] - 1.0]])
    table.loc[[6, 7], ["nucleus_x_um", "nucleus_y_um"]] = off
    cells = build_cells_table(bundle, frames, he_shape, QC)
    expected = ["no_nucleus", "no_nucleus", "low_counts", "few_genes", "control_probes", "", "off_slide", "off_slide"]
    assert cells["reason"].head(8).tolist() == expected
    assert (cells["status"] == np.where(cells["reason"] == "", "kept", "dropped")).all()
    assert cells.loc[0, "x_um"] == table.loc[0, "x_centroid"]
    assert cells.loc[3, "n_genes"] == 4
    without = build_cells_table(bundle, frames, he_shape, {**QC, "require_nucleus": False})
    assert without["reason"].head(3).tolist() == ["", "low_counts", "low_counts"]


def test_a_bundle_that_does_not_tell_of_nuclei(slide):
    frames, nuclei, he_shape, _, _ = slide
    bundle = bundle_at(nuclei)
    bundle.table["nucleus_count"] = pd.array([pd.NA] * len(nuclei), dtype="Int64")
    cells = build_cells_table(bundle, frames, he_shape, QC)
    assert (cells["nucleus_count"] == 1).all()
    assert (cells["status"] == "kept").all()


def test_an_empty_result_names_the_step_and_the_cause(slide):
    frames, nuclei, he_shape, _, _ = slide
    with pytest.raises(UserError, match=r"(?s)build_slide.*low_counts") as caught:
        build_cells_table(bundle_at(nuclei), frames, he_shape, {**QC, "min_transcripts": 1000})
    assert "min_transcripts" in str(caught.value)
    with pytest.raises(UserError, match="must map H&E px to morphology px"):
        build_cells_table(bundle_at(nuclei + 1e5), frames, he_shape, QC)
    empty = FakeBundle(bundle_at(nuclei).table.head(0), np.ones((0, 3)))
    with pytest.raises(UserError, match="no cells"):
        build_cells_table(empty, frames, he_shape, QC)


def test_cells_without_counts_are_told(slide):
    frames, nuclei, he_shape, _, _ = slide
    bundle = bundle_at(nuclei)
    other = bundle.counts()[5:]
    bundle.counts = lambda: other
    with pytest.raises(UserError, match="5 of"):
        build_cells_table(bundle, frames, he_shape, QC)


@pytest.mark.parametrize(
    ("shift_um", "verdict"), [((0, 0), "pass"), ((0.9, -0.8), "pass"), ((-2.5, 1.5), "warn"), ((3.5, 4.0), "fail")]
)
def test_the_offset_is_measured(slide, shift_um, verdict):
    frames, nuclei, he_shape, info, folder = slide
    table = build_cells_table(bundle_at(nuclei, shift_um), frames, he_shape, QC)
    with SlideStore(folder / "he.ome.zarr") as store:
        measured = measure_alignment(store, table, frames, info)
    start, end = frames.um_to_px([[0.0, 0.0], shift_um]) * 0.25
    expected = start - end
    assert measured["residual_um"] == pytest.approx(np.hypot(*shift_um), abs=0.25)
    np.testing.assert_allclose([measured["residual_x_um"], measured["residual_y_um"]], expected, atol=0.2)
    assert measured["residual_sem_um"] < 0.3
    assert measured["verdict"] == verdict
    assert measured["mirrored"] == frames.mirrored
    assert measured["n_cells"] == (table["status"] == "kept").sum()
    assert measured["mpp_he"] == pytest.approx(1.2894 * PIXEL)


def test_unrelated_places_fail(slide):
    frames, nuclei, he_shape, info, folder = slide
    he = np.random.default_rng(0).uniform((30, 30), (he_shape[1] - 30, he_shape[0] - 30), (len(nuclei), 2))
    table = build_cells_table(bundle_at(frames.he_to_um(he)), frames, he_shape, QC)
    measured = measure_alignment(SlideStore(folder / "he.ome.zarr"), table, frames, info)
    assert measured["verdict"] == "fail"
    assert measured["score"] < 5


def test_few_cells_are_not_judged_and_a_wrong_file_is_flagged(slide):
    frames, nuclei, he_shape, info, folder = slide
    table = build_cells_table(bundle_at(nuclei[:20]), frames, he_shape, QC)
    store = SlideStore(folder / "he.ome.zarr")
    measured = measure_alignment(store, table, frames, {**info, "embedded_mpp": 0.2125})
    assert measured["verdict"] == "unknown"
    assert measured["residual_um"] is None
    assert measured["mpp_mismatch"]
    assert not measure_alignment(store, table, frames, {**info, "embedded_mpp": frames.mpp_he * 1.001})["mpp_mismatch"]
    assert not measure_alignment(store, table, frames, {**info, "embedded_mpp": None})["mpp_mismatch"]


def test_red_density_by_hand():
    np.testing.assert_allclose(
        red_density(np.array([[[255, 0, 0]], [[0, 9, 9]]], np.uint8)), [[0], [np.log10(256)]], rtol=1e-6
    )


def test_the_picture(slide):
    frames, nuclei, he_shape, info, folder = slide
    table = build_cells_table(bundle_at(nuclei), frames, he_shape, QC)
    angle = np.linspace(0, 2 * np.pi, 13)
    ring = 3.3 * np.stack([np.cos(angle), np.sin(angle)], -1)
    vertices = (nuclei[:, None] + ring).reshape(-1, 2)
    boundaries = pd.DataFrame(
        {"cell_id": np.repeat(table["cell_id"], 13), "vertex_x": vertices[:, 0], "vertex_y": vertices[:, 1]}
    )
    outlines = outlines_px(boundaries, frames)
    assert outlines["polygon"].nunique() == len(nuclei)
    with SlideStore(folder / "he.ome.zarr") as store:
        assert len(choose_fields(table, store)) == 3
        measured = measure_alignment(store, table, frames, info)
        draw_overlay(folder / "alignment.png", store, table, outlines, measured, "slide_1")
    assert (folder / "alignment.png").stat().st_size > 20_000
