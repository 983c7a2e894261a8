"""The synthetic study: deterministic, honest in its geometry, with the contrasts it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256
from nuclass.synthetic import simulate_slide, study
from nuclass.synthetic.classes import CLASSES, GROUPS
from nuclass.synthetic.tissue import RECIPES, TUMOUR_REACH, grow_tissue
from nuclass.xenium.alignment import read_alignment
from nuclass.xenium.reader import read_bundle

SMALL = (520.0, 420.0, 320)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mirrored slide, simulated twice with one seed and once with another."""
    root = tmp_path_factory.mktemp("synthetic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study._SIZES, "cohort", SMALL)
        for name, seed in (("a", 3), ("b", 3), ("c", 4)):
            simulate_slide(
                slide="lung_h", organ="lung", role="cohort", seed=seed,
                bundle_folder=root / name / "bundle", truth_folder=root / name / "truth" / "lung_h",
            )  # fmt: skip
    return root


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes(folder: Path) -> None:
    assert hashes(folder / "a") == hashes(folder / "b")


def test_another_seed_is_another_study(folder: Path) -> None:
    first, other = hashes(folder / "a" / "bundle"), hashes(folder / "c" / "bundle")
    assert set(first) == set(other)
    assert first["cells.parquet"] != other["cells.parquet"]


def test_dark_nuclei_lie_where_the_truth_says(folder: Path) -> None:
    """Measured on the image: the centroid of the dark pixels around each nucleus, H&E pixels."""
    image = tifffile.imread(folder / "a" / "bundle" / "lung_h_he_image.ome.tif")
    truth = pd.read_parquet(folder / "a" / "truth" / "lung_h" / "truth.parquet")
    lonely = truth[truth["class"].isin(["T_Cell", "Epithelial_Malignant"]) & ~truth["doublet"]]
    errors = []
    for x, y in lonely[["x_he", "y_he"]].to_numpy():
        x0, y0 = int(x) - 30, int(y) - 30
        if x0 < 0 or y0 < 0 or x0 + 60 > image.shape[1] or y0 + 60 > image.shape[0]:
            continue
        red = ndimage.gaussian_filter(image[y0 : y0 + 60, x0 : x0 + 60, 0].astype(float), 1.5)
        labels, _ = ndimage.label(red < 140)
        own = labels[int(y) - y0, int(x) - x0]
        if own:
            cy, cx = ndimage.center_of_mass(labels == own)
            errors.append((cx + 0.5 + x0 - x, cy + 0.5 + y0 - y))
    assert len(errors) > 30
    assert np.abs(np.median(errors, axis=0)).max() < 0.5


def test_the_alignment_leads_from_nuclei_in_the_bundle_to_nuclei_in_the_image(folder: Path) -> None:
    bundle = read_bundle(folder / "a" / "bundle")
    cells = bundle.cells().set_index("cell_id")
    truth = pd.read_parquet(folder / "a" / "truth" / "lung_h" / "truth.parquet").set_index("cell_id")
    matrix = read_alignment(folder / "a" / "bundle" / "lung_h_he_imagealignment.csv").matrix
    morph = cells[["nucleus_x_um", "nucleus_y_um"]].dropna() / bundle.pixel_size
    he = (np.linalg.inv(matrix) @ np.column_stack([morph, np.ones(len(morph))]).T)[:2].T
    assert np.linalg.det(matrix[:2, :2]) < 0, "lung_h is mirrored"
    np.testing.assert_allclose(he, truth.loc[morph.index, ["x_he", "y_he"]], atol=0.02)
    about = read_json(folder / "a" / "truth" / "lung_h" / "slide.json")
    assert np.sqrt(abs(np.linalg.det(matrix[:2, :2]))) * bundle.pixel_size == pytest.approx(about["mpp_he"], rel=1e-6)


@pytest.mark.parametrize("organ", sorted(RECIPES))
def test_the_surroundings_decide_the_tumour_associated_classes(organ: str) -> None:
    cells = grow_tissue(organ, 1200, 560, 900, np.random.default_rng(1)).cells
    stroma = cells[cells["structure"] == "stroma"]
    near = stroma["nest_distance"] < TUMOUR_REACH
    assert (stroma["class"][near] != "Fibroblast").all()
    assert (stroma["class"][~near] != "Tumor_Associated_Fibroblast").all()
    bud = cells[cells["structure"] == "bud"]
    assert (bud["nest_distance"] >= TUMOUR_REACH).all(), "budding cells mislead the surroundings"
    assert (bud["class"] == "Epithelial_Malignant").all()


def test_groups_name_classes() -> None:
    assert {name for group in GROUPS.values() for name in group} <= set(CLASSES)


def test_an_unknown_organ_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No synthetic tissue exists for this organ"):
        simulate_slide(
            slide="x", organ="heart", role="train", seed=1, bundle_folder=tmp_path, truth_folder=tmp_path / "t"
        )


def test_outlines_are_sums_of_sines():
    from nuclass.synthetic.shapes import wobble

    rng = np.random.default_rng(0)
    theta, amplitude, phase = rng.uniform(0, 7, 50), rng.random((4, 3)), rng.uniform(0, 7, (4, 3))
    expected = sum(amplitude[:, [k]] * np.sin(n * theta + phase[:, [k]]) for k, n in enumerate((2, 3, 4)))
    found = wobble(np.cos(theta), np.sin(theta), amplitude[:, None, :], phase[:, None, :])
    np.testing.assert_allclose(found, expected, atol=1e-12)
