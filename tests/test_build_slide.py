"""The table of a slide's cells: their places, and the reasons for leaving some out."""

from __future__ import annotations

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from drawn_slide import PIXEL, matrix_of
from nuclass.core.errors import UserError
from nuclass.core.names import CELL_COLUMNS
from nuclass.slides.build import build_cells_table, funnel
from nuclass.slides.geometry import Frames

QC = {
    "min_transcripts": 10,
    "min_genes": 5,
    "max_control_fraction": 0.1,
    "min_cell_area": 5,
    "max_cell_area": 3000,
    "require_nucleus": True,
    "max_off_slide": 0.5,
}


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


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "mirrored"])
def slide(request):
    """The frames of an H&E of 900 x 1100 px at 0.274 um/px, and 300 nuclei on it in um."""
    rng = np.random.default_rng(5)
    frames = Frames(matrix_of(-88.5, 1.2894, (300.0, 1500.0), request.param), PIXEL, 0.25)
    height, width = 900, 1100
    grid = np.stack(np.meshgrid(np.arange(40, width - 30, 52), np.arange(40, height - 30, 50)), -1).reshape(-1, 2)
    he = grid + rng.uniform(-12, 12, grid.shape)
    return frames, frames.he_to_um(he), (height, width)


def test_cells_are_placed_on_their_nuclei(slide):
    frames, nuclei, he_shape = slide
    table = build_cells_table(bundle_at(nuclei), frames, he_shape, QC)
    assert tuple(table.columns) == CELL_COLUMNS
    assert funnel(table) == {
        "total": len(nuclei), "no_nucleus": 0, "low_counts": 0, "few_genes": 0, "control_probes": 0, "too_small": 0,
        "too_large": 0, "off_slide": 0, "kept": len(nuclei),
    }  # fmt: skip
    np.testing.assert_allclose(table[["x_um", "y_um"]], nuclei)
    np.testing.assert_allclose(table[["x_morph", "y_morph"]], nuclei / PIXEL)
    np.testing.assert_allclose(frames.px_to_um(table[["x_px", "y_px"]]), nuclei)
    np.testing.assert_allclose(table["x_px"], table["x_he"] * frames.mpp_he / 0.25)
    np.testing.assert_allclose(table["cell_x_um"], nuclei[:, 0] + 0.7)


def test_each_reason_is_given_in_order(slide):
    frames, nuclei, he_shape = slide
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


def test_outlines_too_small_or_too_large_are_left_out(slide):
    frames, nuclei, he_shape = slide
    bundle = bundle_at(nuclei)
    bundle.table["cell_area"] = 60.0
    bundle.table.loc[range(6), "cell_area"] = [4.9, 5.0, 3000.0, 3000.1, np.nan, 1e6]
    bundle.table.loc[5, "control_counts"] = 50
    reasons = build_cells_table(bundle, frames, he_shape, QC)["reason"].head(7).tolist()
    assert reasons == ["too_small", "", "", "too_large", "", "control_probes", ""]


def test_a_bundle_that_does_not_tell_of_nuclei(slide):
    frames, nuclei, he_shape = slide
    bundle = bundle_at(nuclei)
    bundle.table["nucleus_count"] = pd.array([pd.NA] * len(nuclei), dtype="Int64")
    cells = build_cells_table(bundle, frames, he_shape, QC)
    assert (cells["nucleus_count"] == 1).all()
    assert (cells["status"] == "kept").all()


def test_an_empty_result_names_the_step_and_the_cause(slide):
    frames, nuclei, he_shape = slide
    with pytest.raises(UserError, match=r"(?s)build_slide.*low_counts") as caught:
        build_cells_table(bundle_at(nuclei), frames, he_shape, {**QC, "min_transcripts": 1000})
    assert "min_transcripts" in str(caught.value)
    with pytest.raises(UserError, match="must map H&E px to morphology px"):
        build_cells_table(bundle_at(nuclei + 1e5), frames, he_shape, QC)
    empty = FakeBundle(bundle_at(nuclei).table.head(0), np.ones((0, 3)))
    with pytest.raises(UserError, match="no cells"):
        build_cells_table(empty, frames, he_shape, QC)


def test_cells_without_counts_are_told(slide):
    frames, nuclei, he_shape = slide
    bundle = bundle_at(nuclei)
    other = bundle.counts()[5:]
    bundle.counts = lambda: other
    with pytest.raises(UserError, match="5 of"):
        build_cells_table(bundle, frames, he_shape, QC)
