"""One slide through its stage: files as users have them, the verdict on each, and what happens to a bad one."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from drawn_slide import PIXEL, VERTICES, DrawnSlide, draw_slide, matrix_of, moved
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_json
from nuclass.slides.align import load_transform
from nuclass.slides.geometry import Frames
from nuclass.slides.job import align_slide, build_slide, check_slide, refuse_failed
from nuclass.slides.store import SlideStore
from nuclass.tables.alignment import alignment_page, alignment_table
from nuclass.xenium.fetch import fetch_slide
from slide_example import write_output
from table_example import lay_out

SETTINGS = {
    "search_um": 24, "block_um": 200, "pass_um": 2, "fail_um": 4, "region_um": 4, "pass_score": 10, "fail_score": 7,
    "warn_off": 0.1, "fail_off": 0.5,
}  # fmt: skip
QC = {
    "min_transcripts": 10, "min_genes": 5, "max_control_fraction": 0.1, "min_cell_area": 5, "max_cell_area": 3000,
    "require_nucleus": True, "max_off_slide": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    return draw_slide(shape=(1500, 1900), turn_deg=-91.2, mirrored=False, seed=21)


@pytest.fixture(scope="module")
def output(drawn, tmp_path_factory):
    """A run's output and its H&E, without an alignment file."""
    return write_output(tmp_path_factory.mktemp("run"), drawn)


def judged(output: Path, out: Path, align: str = "given", **row: str) -> dict:
    """Fetch, align and check one slide; return what alignment.json holds."""
    wanted = {"slide": "mine", "source": "local", "dataset": "", "path": str(output / "outs"), "align": align}
    wanted |= {"he": str(output / "x_he_image.ome.tif"), "alignment": ""} | row
    fetch_slide(wanted, out / "bundle", image=align == "register")
    align_slide(bundle=out / "bundle", transform=out / "transform.json", name="mine", align=align, mpp=0.25)
    check_slide(
        bundle=out / "bundle",
        transform=out / "transform.json",
        verdict=out / "alignment.json",
        overlay=out / "alignment.png",
        settings=SETTINGS,
    )
    assert (out / "alignment.png").stat().st_size > 20_000
    return read_json(out / "alignment.json")


def built(out: Path) -> pd.DataFrame:
    build_slide(
        bundle=out / "bundle", transform=out / "transform.json", store=out / "he.ome.zarr", cells=out / "cells.parquet",
        checks=out / "checks.csv", mpp=0.25, window=224, qc=QC, tiles={"tile": 256, "shard": 1024, "levels": 3},
        name="mine",
    )  # fmt: skip
    return pd.read_parquet(out / "cells.parquet")


def text_of(matrix: np.ndarray) -> str:
    return "; ".join(", ".join(f"{value:.10f}" for value in row) for row in matrix)


def test_a_matrix_in_the_sheet_through_to_the_cells(drawn, output, tmp_path):
    record = judged(output, tmp_path, alignment=text_of(drawn.frames.alignment))
    assert (record["verdict"], record["reasons"]) == ("pass", [])
    assert record["given_as"] == "matrix in the slide sheet"
    assert record["residual_um"] < 0.2
    assert record["mpp_he"] == pytest.approx(0.274, rel=1e-6)
    cells = built(tmp_path)
    assert (cells["status"] == "kept").mean() > 0.9
    with SlideStore(tmp_path / "he.ome.zarr") as store:
        dark = [store.window(x, y, 5)[0].mean() for x, y in cells[["x_px", "y_px"]].head(60).to_numpy()]
    assert np.mean(dark) < 130, "the nuclei lie where the cells say"
    checks = pd.read_csv(tmp_path / "checks.csv")
    assert set(checks["verdict"]) <= {"pass", "skipped"}
    assert "number of cells" in checks["name"].tolist()


def test_keypoints_with_a_wrong_one(drawn, output, tmp_path):
    rng = np.random.default_rng(1)
    he = rng.uniform((100, 100), (1800, 1400), (10, 2))
    fixed = drawn.frames.he_to_morph(he) + rng.normal(0, 2, he.shape)
    fixed[4] += (900, -700)
    lines = ["fixedX,fixedY,alignmentX,alignmentY"]
    lines += [f"{a:.3f},{b:.3f},{c:.3f},{d:.3f}" for (a, b), (c, d) in zip(fixed, he, strict=True)]
    file = tmp_path / "keypoints.csv"
    file.write_text("\r\n".join(lines), encoding="utf-8-sig")
    record = judged(output, tmp_path, alignment=str(file))
    assert record["kind"] == "keypoints"
    assert record["verdict"] == "pass"
    assert record["keypoints"]["used"] == 9
    assert record["keypoints"]["worst"][0][0] == 5
    assert record["keypoints"]["rmse_um"] < 1
    assert re.match(r"9 of 10 keypoints used, RMSE 0\.\d\d um, farthest off: point 5 \d+\.\d um", record["notes"][0])


def test_an_h_and_e_on_the_morphology_grid(tmp_path):
    on_grid = draw_slide(shape=(1500, 1900), mpp_he=PIXEL, turn_deg=0.0, seed=4)
    on_grid.frames = type(on_grid.frames)(np.eye(3), PIXEL, 0.25, (1500, 1900))
    record = judged(write_output(tmp_path / "run", on_grid), tmp_path, alignment="grid")
    assert (record["verdict"], record["given_as"]) == ("pass", "grid")
    assert record["mpp_he"] == PIXEL


def test_the_other_direction_fails_and_says_what_to_write(drawn, output, tmp_path):
    inverse = np.linalg.inv(drawn.frames.alignment)
    record = judged(output, tmp_path, alignment=text_of(inverse))
    assert record["verdict"] == "fail"
    assert record["suggestion"]["as"] == "morphology px to H&E px, the other direction"
    with pytest.raises(UserError, match="The alignment of slide 'mine' failed") as caught:
        refuse_failed(tmp_path / "alignment.json", [], tmp_path / "alignment.png")
    told = str(caught.value)
    assert "read as morphology px to H&E px, the other direction it fits" in told
    assert "give the matrix as suggested; to use it all the same, name the slide in alignment.accept" in told
    typed = record["notes"][-1].rpartition(": ")[2]
    again = judged(output, tmp_path / "again", alignment=typed)
    assert again["verdict"] == "pass"
    refuse_failed(tmp_path / "again/alignment.json", [], "alignment.png")


def test_an_accepted_failure_goes_on(drawn, output, tmp_path, caplog):
    judged(output, tmp_path, alignment=text_of(moved(drawn.frames, 6, 0).alignment))
    refuse_failed(tmp_path / "alignment.json", ["mine"], "alignment.png")
    assert "the alignment failed, and is accepted by alignment.accept" in caplog.text


def test_the_unit_of_he_alignment_csv(drawn, output, tmp_path):
    in_um = np.diag([PIXEL, PIXEL, 1]) @ drawn.frames.alignment
    file = tmp_path / "x_he_alignment.csv"
    np.savetxt(file, in_um, delimiter=",")
    record = judged(output, tmp_path / "out", alignment=str(file))
    assert record["verdict"] == "pass"
    assert record["unit"] == "H&E px to micrometres"
    assert record["mpp_he"] == pytest.approx(0.274, rel=1e-6)


def test_no_file_at_all_is_registered(drawn, output, tmp_path):
    record = judged(output, tmp_path, align="register")
    assert record["verdict"] == "pass"
    assert record["tried"][-1]["map"] == "DAPI", "the placement that was taken"
    frames, _ = load_transform(tmp_path / "transform.json")
    assert np.median(drawn.error_um(frames)) < 2


def test_a_start_20_um_off_is_refined(drawn, output, tmp_path):
    record = judged(output, tmp_path, "refine", alignment=text_of(moved(drawn.frames, 14.2, -14.1).alignment))
    assert record["verdict"] == "pass"
    assert record["residual_um"] < 0.5
    assert record["moved_um"] == pytest.approx(20, abs=0.5)
    assert re.match(r"bettered by (20|19)\.\d\d um \(median\), similarity map from \d+ blocks", record["notes"][0])


def test_another_section_fails(drawn, output, tmp_path):
    other = draw_slide(shape=(1500, 1900), turn_deg=-91.2, seed=99)
    he = other.write(tmp_path / "other.ome.tif")
    record = judged(output, tmp_path, he=str(he), alignment=text_of(drawn.frames.alignment))
    assert record["verdict"] == "fail"
    assert record["residual_um"] is None, "the place of a chance peak says nothing"
    assert "no place within 24 um has the bundle's nuclei on nuclei of the picture" in record["reasons"][0]
    with pytest.raises(UserError, match="'register' in the column 'align' of the slide sheet"):
        refuse_failed(tmp_path / "alignment.json", [], "alignment.png")


def test_no_cell_on_the_image(drawn, output, tmp_path):
    matrix = drawn.frames.alignment.copy()
    matrix[:2, 2] += 1e5
    record = judged(output, tmp_path, alignment=text_of(matrix))
    assert (record["verdict"], record["off_image"]) == ("fail", 1.0)
    assert record["reasons"] == ["100 % of the nuclei lie outside the H&E (limit 50 %)"]
    with pytest.raises(UserError, match="must map H&E px to morphology px"):
        built(tmp_path)
    assert not (tmp_path / "he.ome.zarr").exists()


def test_what_the_image_says_of_its_scale_is_not_believed(drawn, output, tmp_path):
    he = tmp_path / "x_he_image.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.2125, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(he, drawn.image, photometric="rgb", tile=(256, 256), compression="jpeg", metadata=metadata)
    record = judged(output, tmp_path, he=str(he), alignment=text_of(drawn.frames.alignment))
    assert record["verdict"] == "pass"
    assert record["mpp_mismatch"]
    assert record["notes"] == ["the H&E file claims 0.2125 um/px, the alignment says 0.2740 and is used"]


def test_a_bundle_whose_files_disagree_stops_before_the_image(drawn, output, tmp_path):
    copy = shutil.copytree(output, tmp_path / "run")
    cells = pd.read_parquet(copy / "outs/cells.parquet")
    cells.loc[3, "transcript_counts"] += 4
    cells.to_parquet(copy / "outs/cells.parquet")
    judged(copy, tmp_path, alignment=text_of(drawn.frames.alignment))
    with pytest.raises(UserError, match="The files of the bundle do not agree") as caught:
        built(tmp_path)
    assert cells["cell_id"][3] in str(caught.value)
    assert not (tmp_path / "he.ome.zarr").exists()


def test_a_bundle_without_nuclei_is_judged_by_its_cells(drawn, output, tmp_path, caplog):
    copy = shutil.copytree(output, tmp_path / "run")
    place = copy / "outs/nucleus_boundaries.parquet"
    pd.read_parquet(place).head(0).to_parquet(place)
    record = judged(copy, tmp_path, alignment=text_of(drawn.frames.alignment))
    assert record["verdict"] == "pass"
    assert record["n_nuclei"] == len(drawn.he)


@pytest.mark.real
@pytest.mark.parametrize("version", ["skin", "kb"])
def test_real_matrices_carry_cells_onto_a_drawn_slide(real_data, tmp_path, version):
    """The published matrices, with an offset that suits the drawn slide: their turn and scale are what is tested."""
    name = {
        "skin": "Xeniumranger_V1_hSkin_Melanoma_Add_on_FFPE_he_imagealignment.csv",
        "kb": "KB_Xenium_Prime_Breast_Cancer_FFPE_he_imagealignment.csv",
    }[version]
    from nuclass.xenium.alignment import read_alignment

    matrix = read_alignment(real_data / "alignments" / name).matrix.copy()
    mpp = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))) * PIXEL
    side = round(420 / mpp)
    slide = draw_slide(shape=(side, side), mpp_he=mpp, seed=6)
    corners = matrix[:2, :2] @ np.array([[0, side, 0, side], [0, 0, side, side]])
    matrix[:2, 2] = 50 - corners.min(axis=1)
    slide.frames = type(slide.frames)(matrix, PIXEL, 0.25, slide.frames.he_shape)
    record = judged(write_output(tmp_path / "run", slide), tmp_path, alignment=text_of(matrix))
    assert record["verdict"] == "pass"
    assert record["mpp_he"] == pytest.approx({"skin": 0.13685, "kb": 0.27405}[version], abs=2e-5)


@pytest.mark.real
def test_the_real_bundle_is_too_small_to_judge_and_says_so(real_data, tmp_path):
    """23 real cells on a plain picture: a warning, never a pass."""
    he = tmp_path / "he.tif"
    grey = np.full((3522, 5789, 3), 230, np.uint8)
    tifffile.imwrite(he, grey, photometric="rgb", tile=(512, 512), compression="jpeg")
    output = real_data / "xenium_v3.0.0_mouse_ileum_tiny"
    record = judged(output, tmp_path, path=str(output), he=str(he), alignment="grid")
    assert record["verdict"] != "pass"
    assert any("too few nuclei to judge (23" in reason for reason in record["reasons"])


@pytest.mark.real
@pytest.mark.parametrize("align", ["given", "refine", "register"])
def test_a_real_field_packed_as_a_slide(real_data, tmp_path, align):
    """A real H&E field with 423 outlined nuclei as a run's output, turned and mirrored: each way must end in a pass."""
    field = real_slide(real_data / "he_nuclei_hgsc_stromal")
    start = {"given": field.frames, "refine": moved(field.frames, 14, -14), "register": field.frames}[align]
    row = {"alignment": "" if align == "register" else text_of(start.alignment)}
    record = judged(write_output(tmp_path / "run", field), tmp_path, align, **row)
    assert record["verdict"] == "pass", record["reasons"]
    assert record["residual_um"] < 0.8
    assert record["mirrored"]
    assert record["mpp_he"] == pytest.approx(0.5, rel=0.01)
    frames, _ = load_transform(tmp_path / "transform.json")
    assert np.median(field.error_um(frames)) < 1
    assert (built(tmp_path)["status"] == "kept").mean() > 0.9


def real_slide(folder: Path) -> DrawnSlide:
    """The field as a slide: its outlines with as many vertices each, at 0.5 um/px, mirrored, turned by 91 degrees."""
    import shapely
    from PIL import Image

    shapes = shapely.from_wkb(pd.read_parquet(folder / "hgsc_stromal_cells.parquet")["geometry"].to_numpy())
    image = np.asarray(Image.open(folder / "hgsc_stromal_he.jpg").convert("RGB"))
    along = np.linspace(0, 1, VERTICES)
    outlines = np.array(
        [[s.exterior.interpolate(t, normalized=True).coords[0] for t in along] for s in shapes], np.float64
    )
    matrix = matrix_of(91.0, 0.5 / PIXEL, (0.0, 0.0), True)
    matrix[:2, 2] = 60 - (outlines.reshape(-1, 2) @ matrix[:2, :2].T).min(axis=0)
    frames = Frames(matrix, PIXEL, 0.25, image.shape[:2])
    centre = np.array([[s.centroid.x, s.centroid.y] for s in shapes])
    return RealSlide(frames, centre, np.empty((len(centre), 2)), np.empty(len(centre)), image, outlines)


@dataclass
class RealSlide(DrawnSlide):
    """A slide whose outlines are given, not drawn."""

    outlines: np.ndarray

    @property
    def outlines_he(self) -> np.ndarray:
        return self.outlines


# The table and the page


def test_the_table_and_the_page(drawn, output, tmp_path):
    good = judged(output, tmp_path / "good", alignment=text_of(drawn.frames.alignment))
    bad = judged(output, tmp_path / "bad", alignment=text_of(moved(drawn.frames, 6, 0).alignment))
    for record, name in ((good, "good"), (bad, "bad")):
        write_json(tmp_path / name / "alignment.json", record | {"slide": name})
    verdicts = [tmp_path / name / "alignment.json" for name in ("good", "bad")]
    text = lay_out(alignment_table(verdicts), tmp_path / "t")
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["slide"].tolist() == ["good", "bad"]
    assert table["verdict"].tolist() == ["pass", "fail"]
    assert table["residual_um"][1] == pytest.approx(6, abs=0.2)
    assert "| bad | fail | 6.0" in text
    assert "the nuclei lie 6.0 µm from where the cells say (limit 4 µm)" in text
    pictures = [file.with_suffix(".png") for file in verdicts]
    alignment_page(verdicts, pictures, tmp_path / "page.html", study="my <study>", synthetic=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1 fail, 1 pass." in page
    assert page.index('id="bad"') < page.index('id="good"'), "what needs a look comes first"
    assert "my &lt;study&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page needs no other file"


def test_a_mirrored_slide_is_named_so(tmp_path):
    mirrored = draw_slide(shape=(1500, 1900), turn_deg=90.4, mirrored=True, seed=30)
    # Moved so that the bundle begins at its corner, as a run does.
    low = mirrored.nuclei.xy.min(axis=0) / PIXEL - 30
    shift = np.eye(3)
    shift[:2, 2] = -low
    mirrored.frames = type(mirrored.frames)(shift @ mirrored.frames.alignment, PIXEL, 0.25, (1500, 1900))
    record = judged(write_output(tmp_path / "run", mirrored), tmp_path, alignment=text_of(mirrored.frames.alignment))
    assert record["verdict"] == "pass"
    assert record["mirrored"]


def test_the_command(drawn, output, tmp_path, capsys, monkeypatch):
    from nuclass.cli import main

    monkeypatch.chdir(tmp_path)
    good = ["align", str(output / "outs"), "--he", str(output / "x_he_image.ome.tif"), "--name", "mine"]
    matrix = ["--alignment", text_of(drawn.frames.alignment)]
    assert main([*good, *matrix, "--out", "good"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("PASS: mine, H&E at 0.2740 um/px\n  residual 0.0")
    written = np.loadtxt(tmp_path / "good/matrix.csv", delimiter=",")
    np.testing.assert_allclose(written, drawn.frames.alignment, rtol=1e-9, atol=1e-9)
    (tmp_path / "strict.yaml").write_text("alignment:\n  pass_um: 0.001\n  fail_um: 3\n", encoding="utf-8")
    off = ["--alignment", text_of(moved(drawn.frames, 3.5, 0).alignment), "--configfile", "strict.yaml"]
    with pytest.raises(SystemExit, match="1"):
        main([*good, *off, "--out", "bad"])
    assert "the nuclei lie 3.5 um from where the cells say (limit 3 um)" in capsys.readouterr().out
