"""The verdict on an alignment, the ways a matrix is read, refining and registering: against known transforms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from drawn_slide import PIXEL, DrawnSlide, draw_slide, moved
from nuclass.core.errors import UserError
from nuclass.slides.align import find_transform, look, readings
from nuclass.slides.coarse import scales
from nuclass.slides.evidence import Nuclei
from nuclass.slides.geometry import Frames
from nuclass.slides.register import _fit, refine, register
from nuclass.slides.source import open_source
from nuclass.slides.verdict import Limits, judge, measure_alignment
from nuclass.xenium.alignment import Alignment

LIMITS = Limits(24, 200, 2, 4, 10, 7, 4, 0.1, 0.5)


class FakeBundle:
    pixel_size = PIXEL


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "mirrored"])
def slide(request, tmp_path_factory):
    drawn = draw_slide(mirrored=request.param)
    file = drawn.write(tmp_path_factory.mktemp("slide") / "he.ome.tif")
    with open_source(file) as source:
        yield drawn, source


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    drawn = draw_slide(seed=8, turn_deg=1.2, mpp_he=0.31)
    file = drawn.write(tmp_path_factory.mktemp("plain") / "he.ome.tif")
    with open_source(file) as source:
        yield drawn, source


def verdict_of(source, frames: Frames, nuclei: Nuclei, limits: Limits = LIMITS):
    measured = measure_alignment(source, frames, nuclei, limits)
    return *judge(measured, frames, limits), measured


# The verdict


@pytest.mark.parametrize(
    ("shift_um", "expected"), [((0, 0), "pass"), ((0.9, -0.8), "pass"), ((-2.5, 1.5), "warn"), ((3.5, 4.0), "fail")]
)
def test_the_offset_is_measured_and_judged(slide, shift_um, expected):
    drawn, source = slide
    verdict, reasons, measured = verdict_of(source, moved(drawn.frames, *shift_um), drawn.nuclei)
    assert verdict == expected, reasons
    # moved() places the cells too far by the shift, so the nuclei lie back by it.
    assert measured.peak.x_um == pytest.approx(-shift_um[0], abs=0.2)
    assert measured.peak.y_um == pytest.approx(-shift_um[1], abs=0.2)
    assert measured.peak.score > 20
    assert measured.sem_um < 0.1
    assert measured.off_image == 0
    assert measured.off_tissue < 0.02


def test_a_turn_shows_in_the_map_of_residuals(slide):
    drawn, source = slide
    _, _, measured = verdict_of(source, moved(drawn.frames, 0, 0, turn_deg=0.5), drawn.nuclei)
    blocks = measured.clear_blocks
    height, width = source.shape
    across, down = (blocks["x_he"] - width / 2) * 0.274, (blocks["y_he"] - height / 2) * 0.274
    np.testing.assert_allclose(blocks["dx_um"], np.deg2rad(0.5) * down, atol=0.6)
    np.testing.assert_allclose(blocks["dy_um"], -np.deg2rad(0.5) * across, atol=0.6)


@pytest.mark.parametrize("wrong", ["other section", "mirrored", "upside down"])
def test_what_does_not_belong_fails(slide, wrong):
    drawn, source = slide
    height, width = source.shape
    flip = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
    turn = np.array([[-1.0, 0, width], [0, -1, height], [0, 0, 1]])
    if wrong == "other section":
        other = draw_slide(seed=77)
        nuclei = other.nuclei.mapped(lambda um: drawn.frames.he_to_um(other.frames.um_to_he(um)))
        frames = drawn.frames
    else:
        change = flip if wrong == "mirrored" else turn
        frames = Frames(drawn.frames.alignment @ change, PIXEL, 0.25, source.shape)
        nuclei = drawn.nuclei
    verdict, reasons, measured = verdict_of(source, frames, nuclei)
    assert verdict == "fail"
    assert measured.peak.score < LIMITS.fail_score
    assert "no place within 24 um has the bundle's nuclei on nuclei of the picture" in reasons[0]


def test_a_section_of_the_same_density_fails(slide):
    """Each nucleus is somewhere near another one, none on one: what a neighbouring section looks like from far."""
    drawn, source = slide
    nuclei = drawn.other_section(10.0)
    verdict, reasons, measured = verdict_of(source, drawn.frames, nuclei)
    assert verdict == "fail"
    assert measured.peak.score < LIMITS.fail_score
    assert "no place within 24 um" in reasons[0]


def test_a_warped_section_is_told_from_another_one(slide):
    """Every block has its own shift of some 10 um: it is this section, but no window finds its nucleus."""
    drawn, source = slide
    verdict, reasons, measured = verdict_of(source, drawn.frames, drawn.warped(10.0))
    assert verdict == "fail"
    assert measured.mostly_clear
    assert reasons[0].startswith(
        "the nuclei lie off by another shift in each place, in half of the blocks by more than"
    )
    gentle, _, measured = verdict_of(source, drawn.frames, drawn.warped(1.5))
    assert gentle == "pass"
    assert measured.region_p90_um == pytest.approx(1.7, abs=0.5)


def test_glass_is_no_failure_where_the_nuclei_are_found(slide):
    drawn, source = slide
    measured = measure_alignment(source, drawn.frames, drawn.nuclei, LIMITS)
    pale = replace(measured, off_tissue=0.8)
    assert judge(pale, drawn.frames, LIMITS) == ("warn", ["80 % of the nuclei lie on empty glass (good is 10 %)"])
    lost = replace(pale, peak=replace(measured.peak, score=3.0), blocks=measured.blocks.assign(clear=False))
    verdict, reasons = judge(lost, drawn.frames, LIMITS)
    assert verdict == "fail"
    assert reasons[0] == "80 % of the nuclei lie on empty glass (limit 50 %)"


def test_cells_off_the_image_and_off_the_tissue_are_counted(slide):
    drawn, source = slide
    nuclei = drawn.nuclei
    width = source.shape[1]
    shifted = Nuclei(nuclei.xy, nuclei.start, nuclei.centre)
    frames = moved(drawn.frames, 0.45 * width * 0.274, 0)
    verdict, reasons, measured = verdict_of(source, frames, shifted)
    assert measured.off_image == pytest.approx(0.42, abs=0.06)
    assert verdict == "fail"
    assert any("of the nuclei lie outside the H&E (good is 10 %)" in reason for reason in reasons)
    away = moved(drawn.frames, 5e4, 0)
    verdict, reasons, measured = verdict_of(source, away, nuclei)
    assert (verdict, measured.off_image, measured.peak) == ("fail", 1.0, None)
    assert reasons == ["100 % of the nuclei lie outside the H&E (limit 50 %)"]


def test_few_nuclei_are_a_warning(slide):
    drawn, source = slide
    nuclei = drawn.nuclei
    few = Nuclei(nuclei.xy[: 8 * 13], nuclei.start[:8], nuclei.centre[:8])
    verdict, reasons, _ = verdict_of(source, drawn.frames, few)
    assert verdict == "warn"
    assert reasons == ["too few nuclei to judge (8, no block with enough of them)"]


def test_a_stretched_map_is_a_warning(plain):
    drawn, source = plain
    width = source.shape[1]
    stretch = np.diag([1.08, 1.0, 1.0])
    stretch[0, 2] = -0.08 * width / 2
    frames = Frames(drawn.frames.alignment @ np.linalg.inv(stretch), PIXEL, 0.25, source.shape)
    _, reasons, _ = verdict_of(source, frames, drawn.nuclei)
    assert "the alignment stretches one axis by 8 %" in reasons


# The ways a matrix may be meant


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (lambda a: np.linalg.inv(a), "morphology px to H&E px, the other direction"),
        (lambda a: np.diag([PIXEL, PIXEL, 1]) @ a, "H&E px to micrometres"),
        (lambda a: np.linalg.inv(np.diag([PIXEL, PIXEL, 1]) @ a), "micrometres to H&E px, the other direction"),
        (lambda a: a[[1, 0, 2]][:, [1, 0, 2]], "H&E px to morphology px with rows and columns exchanged"),
    ],
)
def test_a_matrix_that_is_meant_otherwise_is_said(slide, written, name):
    drawn, source = slide
    matrix = written(drawn.frames.alignment)
    frames, record = find_transform(
        source, FakeBundle(), drawn.nuclei, Alignment(matrix, "matrix", "morphology_px"), align="given", mpp=0.25,
        given_as="x_he_imagealignment.csv",
    )  # fmt: skip
    # Used as given all the same: nothing is turned round silently.
    np.testing.assert_allclose(frames.alignment, matrix / matrix[2, 2])
    assert record["suggestion"]["as"] == name
    np.testing.assert_allclose(record["suggestion"]["matrix"], drawn.frames.alignment, rtol=1e-9, atol=1e-9)
    assert f"read as {name} it fits" in record["notes"][-1]
    typed = record["notes"][-1].rpartition(": ")[2]
    from nuclass.core.bundle_source import parse_matrix

    np.testing.assert_allclose(parse_matrix(typed), drawn.frames.alignment, rtol=1e-8, atol=1e-8)


def test_a_good_matrix_is_read_one_way_only(slide):
    drawn, source = slide
    given = Alignment(drawn.frames.alignment, "matrix", "morphology_px")
    frames, record = find_transform(
        source, FakeBundle(), drawn.nuclei, given, align="given", mpp=0.25, given_as="a.csv"
    )
    np.testing.assert_array_equal(frames.alignment, drawn.frames.alignment)
    assert record["readings"] == []
    assert record["notes"] == []
    assert "suggestion" not in record


@pytest.mark.parametrize("unit", ["px", "um"])
def test_the_unsettled_unit_is_decided_by_the_picture(slide, unit, caplog):
    drawn, source = slide
    matrix = drawn.frames.alignment
    if unit == "um":
        matrix = np.diag([PIXEL, PIXEL, 1]) @ matrix
    frames, record = find_transform(
        source, FakeBundle(), drawn.nuclei, Alignment(matrix, "matrix", "unsettled"), align="given", mpp=0.25,
        given_as="x_he_alignment.csv",
    )  # fmt: skip
    np.testing.assert_allclose(frames.alignment, drawn.frames.alignment, rtol=1e-9, atol=1e-9)
    assert record["unit"] == ("H&E px to micrometres" if unit == "um" else "H&E px to morphology px")
    assert "files of this name come in two units; the picture says" in record["notes"][0]
    assert any("x_he_alignment.csv is read as" in message for message in caplog.messages)


def test_an_unsettled_unit_that_fits_neither_way_is_refused(slide):
    drawn, source = slide
    matrix = moved(drawn.frames, 900, 500).alignment
    with pytest.raises(UserError, match="The unit of the alignment cannot be decided") as caught:
        find_transform(
            source, FakeBundle(), drawn.nuclei, Alignment(matrix, "matrix", "unsettled"), align="given", mpp=0.25,
            given_as="x_he_alignment.csv",
        )  # fmt: skip
    assert "align: register" in str(caught.value)


def test_the_readings_undo_each_other():
    matrix = np.array([[0.2, 1.1, 30.0], [-1.2, 0.1, 900.0], [0, 0, 1]])
    ways = list(readings(matrix, PIXEL).values())
    np.testing.assert_allclose(ways[2] @ matrix, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(PIXEL * ways[1][:2], matrix[:2])
    np.testing.assert_allclose(ways[4][:2, 2], matrix[[1, 0], 2])


def test_no_alignment_is_an_error_that_names_the_choices(slide):
    drawn, source = slide
    with pytest.raises(UserError, match="The slide has no alignment") as caught:
        find_transform(source, FakeBundle(), drawn.nuclei, None, align="given", mpp=0.25)
    assert "the word 'grid'" in str(caught.value)


# Refining and registering


@pytest.mark.parametrize(
    "start", [(20.0, 0.0, 0.0, 1.0), (-12.0, 16.0, 0.4, 1.004), (0.0, 0.0, 0.0, 1.0)], ids=["20um", "turned", "true"]
)
def test_refining_from_20_um_off(slide, start):
    drawn, source = slide
    fit = refine(source, moved(drawn.frames, *start), drawn.nuclei)
    assert np.median(drawn.error_um(fit.frames)) < 0.5
    assert drawn.error_um(fit.frames).max() < 1.0
    assert fit.clear
    assert fit.model in ("affine", "unchanged")


def test_refining_where_nothing_fits_changes_nothing(slide):
    drawn, source = slide
    start = moved(drawn.frames, 900, 500)
    fit = refine(source, start, drawn.nuclei)
    assert fit.model == "none"
    np.testing.assert_array_equal(fit.frames.alignment, start.alignment)


def test_refining_a_warped_section_makes_no_place_worse(slide):
    drawn, source = slide
    nuclei = drawn.warped(6.0)
    before = measure_alignment(source, drawn.frames, nuclei, LIMITS)
    fit = refine(source, drawn.frames, nuclei)
    after = measure_alignment(source, fit.frames, nuclei, LIMITS)
    assert after.region_p90_um < before.region_p90_um + 0.5
    assert after.region_median_um < before.region_median_um + 0.5


def test_a_corner_that_agrees_does_not_turn_the_rest():
    """A third of the moves is stretched as one, the others are small and differ: the stretch would throw them far."""
    rng = np.random.default_rng(4)
    at = np.stack(np.meshgrid(np.arange(10) * 100.0, np.arange(3) * 100.0), axis=-1).reshape(-1, 2)
    moved_by = rng.uniform(-3, 3, at.shape)
    corner = at[:, 0] < 400
    moved_by[corner] = 0.03 * (at[corner] - (150, 100))
    change, _, _ = _fit(at, moved_by, 0.5)
    left = np.hypot(*(at @ change[:2, :2].T + change[:2, 2] - at - moved_by).T)
    assert left.mean() <= np.hypot(*moved_by.T).mean()


def test_few_blocks_move_but_never_turn(slide):
    """A block or two with a distinct peak say how far, not how turned."""
    drawn, source = slide
    low = drawn.nuclei.centre.min(axis=0)
    rows = np.flatnonzero((drawn.nuclei.centre < low + 190).all(axis=1))
    part = DrawnSlide(drawn.frames, drawn.he[rows], drawn.radius[rows], drawn.angle[rows], drawn.image)
    start = moved(drawn.frames, 14, -9)
    fit = refine(source, start, part.nuclei)
    assert fit.model == "translation"
    np.testing.assert_array_equal(fit.frames.alignment[:2, :2], start.alignment[:2, :2])
    assert part.error_um(fit.frames).max() < 0.5


def test_registering_needs_nuclei(slide):
    drawn, source = slide
    nuclei = drawn.nuclei
    few = Nuclei(nuclei.xy[: 29 * 13], nuclei.start[:29], nuclei.centre[:29])
    with pytest.raises(UserError, match="too few nuclei to register its H&E by") as caught:
        register(source, PIXEL, 0.25, few)
    assert "29 nuclei" in str(caught.value)


def test_registering_an_h_and_e_that_shows_a_part_of_the_region(tmp_path, monkeypatch):
    monkeypatch.setattr("nuclass.slides.register.PASSES", ((192, (0.0, 3.0, 90.0), 2.2),))
    drawn = draw_slide(shape=(1800, 3600), turn_deg=1.5, seed=15)
    cut = DrawnSlide(drawn.frames, drawn.he, drawn.radius, drawn.angle, np.ascontiguousarray(drawn.image[:, :2300]))
    with open_source(cut.write(tmp_path / "he.tif")) as source:
        fit = register(source, PIXEL, 0.25, drawn.nuclei)
    assert np.median(drawn.error_um(fit.frames)[drawn.he[:, 0] < 2300]) < 1.0


def test_scales_stay_within_what_scanners_do():
    points = np.array([[0.0, 0.0], [5000.0, 3000.0]])
    tried = scales(points, (12_000, 20_000), 1.35)
    assert tried[0] == pytest.approx(5000 / (1.35 * 20_000))
    assert 1.0 <= tried[-1] <= 1.1 * 1.05
    assert np.diff(np.log(tried)) == pytest.approx(0.05)
    assert len(scales(points, (200, 300), 1.35)) > 10, "a small picture of a large region is tried all the same"


def test_registering_without_a_prior(slide):
    drawn, source = slide
    fit = register(source, PIXEL, 0.25, drawn.nuclei)
    assert np.median(drawn.error_um(fit.frames)) < 2.0
    assert drawn.error_um(fit.frames).max() < 4.0
    assert fit.frames.mirrored == drawn.frames.mirrored
    assert fit.tried[0]["map"] == "nuclei"


def test_registering_a_small_region_on_a_large_picture(tmp_path):
    """The picture holds more tissue than the run saw, and the run saw a part of it only."""
    drawn = draw_slide(shape=(3600, 4200), turn_deg=178.9, mirrored=True, seed=3)
    inside = (drawn.he > (1500, 900)).all(1) & (drawn.he < (3600, 2500)).all(1)
    part = DrawnSlide(drawn.frames, drawn.he[inside], drawn.radius[inside], drawn.angle[inside], drawn.image)
    with open_source(part.write(tmp_path / "he.tif")) as source:
        fit = register(source, PIXEL, 0.25, part.nuclei)
    assert np.median(part.error_um(fit.frames)) < 2.0


def test_another_section_cannot_be_registered(plain, monkeypatch):
    _, source = plain
    monkeypatch.setattr("nuclass.slides.register.PASSES", ((96, (0.0, 90.0, 180.0, 270.0), 1.35),))
    with pytest.raises(UserError, match="The H&E could not be registered to the bundle") as caught:
        register(source, PIXEL, 0.25, draw_slide(seed=99).nuclei)
    assert "check that the H&E is of this section" in str(caught.value)


def test_registering_a_slide_that_lies_askew(tmp_path, monkeypatch):
    """Turned by 33 degrees: no right-angle placement holds, another turn does."""
    askew = tuple(range(20, 50, 3))
    monkeypatch.setattr("nuclass.slides.register.PASSES", ((64, (0.0, 90.0), 1.35), (96, askew, 1.35)))
    drawn = draw_slide(seed=12, turn_deg=-33.0)
    with open_source(drawn.write(tmp_path / "he.tif")) as source:
        fit = register(source, PIXEL, 0.25, drawn.nuclei)
    assert np.median(drawn.error_um(fit.frames)) < 2.0
    assert fit.frames.rotation_deg == pytest.approx(-33.0, abs=0.05)


def test_looking_is_quick_and_right(slide):
    drawn, source = slide
    assert look(source, drawn.frames, drawn.nuclei).score > 20
    assert look(source, moved(drawn.frames, 5e4, 0), drawn.nuclei) is None


# A real field


@pytest.mark.real
def test_a_real_field_with_known_nuclei(real_data: Path, tmp_path):
    """423 outlines drawn on a real H&E: found where they are, wherever the matrix puts them, and not elsewhere."""
    import pandas as pd
    import shapely
    import tifffile
    from PIL import Image

    folder = real_data / "he_nuclei_hgsc_stromal"
    shapes = shapely.from_wkb(pd.read_parquet(folder / "hgsc_stromal_cells.parquet")["geometry"].to_numpy())
    image = np.asarray(Image.open(folder / "hgsc_stromal_he.jpg").convert("RGB"))
    tifffile.imwrite(tmp_path / "he.tif", image, photometric="rgb", tile=(256, 256), compression="jpeg")
    turn = np.eye(3)
    turn[:2, :2] = (0.5 / PIXEL) * Rotation.from_euler("z", 91.0, degrees=True).as_matrix()[:2, :2]
    turn[:2, 2] = (4000, 100)
    frames = Frames(turn, PIXEL, 0.25, image.shape[:2])
    rings = [np.asarray(shape.exterior.coords)[:-1] for shape in shapes]
    start = np.cumsum([0] + [len(ring) for ring in rings[:-1]])
    centre = np.array([[shape.centroid.x, shape.centroid.y] for shape in shapes])
    nuclei = Nuclei(np.concatenate(rings), start.astype(np.int64), centre).mapped(frames.he_to_um)
    with open_source(tmp_path / "he.tif") as source:
        verdict, _, measured = verdict_of(source, frames, nuclei)
        assert verdict == "pass"
        assert measured.peak.distance_um < 0.7
        assert measured.peak.score > 20
        verdict, _, measured = verdict_of(source, moved(frames, 10, -7), nuclei)
        assert verdict == "fail"
        assert measured.peak.x_um == pytest.approx(-10, abs=0.8)
        assert measured.peak.y_um == pytest.approx(7, abs=0.8)
        half_turn = Frames(turn @ np.array([[-1.0, 0, 1500], [0, -1, 1500], [0, 0, 1]]), PIXEL, 0.25, image.shape[:2])
        verdict, _, measured = verdict_of(source, half_turn, nuclei)
        assert verdict == "fail"
        assert measured.peak.score < LIMITS.fail_score
        for fit in (refine(source, moved(frames, 14, 14), nuclei), register(source, PIXEL, 0.25, nuclei)):
            error = np.hypot(*((fit.frames.um_to_he(nuclei.centre) - frames.um_to_he(nuclei.centre)) * 0.5).T)
            assert error.max() < 1


@pytest.mark.slow
def test_a_demo_slide_from_nothing_and_from_20_um_off(tmp_path):
    """The mirrored slide of the synthetic study, whose true transform is stored apart."""
    from nuclass.core.files import read_json
    from nuclass.slides.align import nuclei_of
    from nuclass.synthetic import simulate_slide
    from nuclass.xenium.reader import read_bundle

    simulate_slide(
        slide="lung_h", organ="lung", role="cohort", seed=1, bundle_folder=tmp_path / "b", truth_folder=tmp_path / "t"
    )
    bundle = read_bundle(tmp_path / "b")
    nuclei = nuclei_of(bundle)
    with open_source(tmp_path / "b/lung_h_he_image.ome.tif") as source:
        true = Frames(np.array(read_json(tmp_path / "t/slide.json")["alignment"]), PIXEL, 0.25, source.shape)
        for fit, limit in (
            (register(source, PIXEL, 0.25, nuclei, bundle.morphology_focus()), 2.0),
            (refine(source, moved(true, 14.2, -14.1), nuclei), 0.5),
        ):
            off = (fit.frames.um_to_he(nuclei.centre) - true.um_to_he(nuclei.centre)) * true.mpp_he
            assert np.median(np.hypot(*off.T)) < limit
            assert fit.frames.mirrored
