from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fake_study import CLASSES, slide_sheet, write_predictions, write_slides
from nuclass.core.errors import UserError
from nuclass.evaluation import compare_cohorts, count_cells, evaluate_model, read_models
from nuclass.evaluation.choose import choose_cells
from nuclass.figures.alignment import draw_alignment
from nuclass.figures.branches import draw_branches
from nuclass.figures.calibration import draw_calibration
from nuclass.figures.confusion import draw_confusion, draw_one_confusion
from nuclass.figures.dataset_composition import draw_dataset_composition, wedge_angles
from nuclass.figures.funnel import draw_funnel
from nuclass.figures.gradcam import draw_branch_maps, draw_gradcam
from nuclass.figures.gradcam_controls import draw_gradcam_controls, verdict
from nuclass.figures.per_class_f1 import draw_per_class_f1
from nuclass.figures.style import Classes
from nuclass.slides.overlay import Field

ROOT = Path(__file__).parents[1]
STYLE = ROOT / "resources" / "style" / "nuclass.mplstyle"
SHEET = ROOT / "resources" / "classes.tsv"
LOOK = {"style": STYLE, "synthetic": True}
SIZES = {"windows": (224, 1024), "mpp": 0.25, "classes": SHEET}
FUNNEL = ["slide", "step", "cells", "dropped", "reasons"]
COHORTS = ["ovary_h", "lung_h", "pancreas_h", "all"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    paths = write_predictions(folder / "predictions", n=300)
    compare_cohorts(paths, folder / "c.json", folder / "c.csv", mpp=0.25, block_um=150, draws=50, seed=1, min_support=5)
    for model, files in paths.items():
        for cohort in COHORTS:
            chosen = list(files.values()) if cohort == "all" else [files[cohort]]
            evaluate_model(chosen, folder / model / cohort, model=model, cohort=cohort, checkpoint=None)
    slides = write_slides(folder, n=300)
    count_cells(slides["labels"], slides["splits"], slide_sheet())[0].to_csv(folder / "counts.csv", index=False)
    return folder


def outputs(folder: Path, name: str) -> tuple[list[Path], Path]:
    return [folder / f"{name}.pdf", folder / f"{name}.png"], folder / f"{name}.csv"


def with_svg(folder: Path, name: str) -> tuple[list[Path], Path]:
    """The outputs, and an SVG, whose words can be read."""
    files, csv = outputs(folder, name)
    return [*files, folder / f"{name}.svg"], csv


def pdf_text(path: Path) -> bytes:
    """All streams of a PDF, unpacked."""
    data = path.read_bytes()
    parts = []
    for match in re.finditer(rb"stream\r?\n(.*?)endstream", data, re.S):
        try:
            parts.append(zlib.decompress(match.group(1)))
        except zlib.error:
            continue
    return data + b"".join(parts)


def check(folder: Path, name: str, width_mm: float = 183) -> pd.DataFrame:
    """A vector PDF with embedded fonts, a PNG of 300 dpi that is not blank, and the numbers."""
    pdf, png, csv = (folder / f"{name}.{ending}" for ending in ("pdf", "png", "csv"))
    content = pdf_text(pdf)
    assert content.startswith(b"%PDF")
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") == 1
    with Image.open(png) as image:
        assert image.width == pytest.approx(width_mm / 25.4 * 300, abs=2)
        assert image.info["dpi"][0] == pytest.approx(300, abs=1)
        assert np.asarray(image.convert("L")).std() > 5
    table = pd.read_csv(csv)
    assert len(table)
    return table


def test_confusion(study: Path, tmp_path: Path) -> None:
    tables = {c: study / "gate" / c / "confusion.csv" for c in COHORTS}
    draw_confusion(tables, *outputs(tmp_path, "confusion"), classes=SHEET, **LOOK)
    numbers = check(tmp_path, "confusion")
    labels = np.load(study / "gate" / "all" / "labels.npy")
    preds = np.load(study / "gate" / "all" / "preds.npy")
    i, j = CLASSES.index("Fibroblast"), CLASSES.index("Tumor_Associated_Fibroblast")
    row = numbers.query("cohort == 'all' and true == @CLASSES[@i] and predicted == @CLASSES[@j]").iloc[0]
    assert row["cells"] == ((labels == i) & (preds == j)).sum()
    draw_one_confusion(tables["all"], tmp_path / "one.png", model="gate", cohort="all", classes=SHEET, style=STYLE)
    assert (tmp_path / "one.png").stat().st_size > 10_000


def test_per_class_f1(study: Path, tmp_path: Path) -> None:
    draw_per_class_f1(study / "c.csv", *outputs(tmp_path, "f1"), classes=SHEET, **LOOK)
    numbers = check(tmp_path, "f1")
    table = pd.read_csv(study / "gate" / "lung_h" / "per_class.csv").set_index("class")
    drawn = numbers.query("cohort == 'lung_h' and name == 'fused'").set_index("class")["value"]
    np.testing.assert_allclose(drawn, table["f1"].reindex(drawn.index), atol=1e-6)


def test_branches(study: Path, tmp_path: Path) -> None:
    draw_branches(study / "c.json", study / "c.csv", *outputs(tmp_path, "branches"), **LOOK)
    numbers = check(tmp_path, "branches")
    shares = numbers.query("metric == 'share'").groupby("cohort")["value"].sum()
    np.testing.assert_allclose(shares, 1)


def test_calibration(study: Path, tmp_path: Path) -> None:
    models = ("local", "global", "gate")
    draw_calibration(
        {m: study / m / "all" / "reliability.csv" for m in models},
        {m: study / m / "all" / "risk_coverage.csv" for m in models},
        {m: study / m / "all" / "metrics.json" for m in models},
        *outputs(tmp_path, "calibration"),
        **LOOK,
    )
    numbers = check(tmp_path, "calibration")
    bins = numbers[numbers["panel"] == "reliability"]
    assert (bins.groupby(["model", "stage"])["cells"].sum() == 900).all()
    # Counted from the cells: of the surest half of the fused model's predictions, the share that is wrong.
    folder = study / "gate" / "all"
    probs, labels = np.load(folder / "probs.npy"), np.load(folder / "labels.npy")
    surest = np.argsort(-probs.max(axis=1), kind="stable")[:450]
    half = numbers.query("panel == 'risk' and model == 'gate' and cells == 450")
    assert half["risk"].item() == pytest.approx((probs.argmax(axis=1) != labels)[surest].mean(), abs=1e-6)
    assert half["coverage"].item() == 0.5


def test_calibration_of_few_cells_says_so(study: Path, tmp_path: Path) -> None:
    files = {name: study / "gate" / "all" / name for name in ("reliability.csv", "risk_coverage.csv", "metrics.json")}
    few = pd.read_csv(files["reliability.csv"])
    few.assign(cells=few["cells"].clip(upper=3)).to_csv(tmp_path / "few.csv", index=False)
    pd.read_csv(files["risk_coverage.csv"]).head(0).to_csv(tmp_path / "none.csv", index=False)
    draw_calibration(
        {"gate": tmp_path / "few.csv"},
        {"gate": tmp_path / "none.csv"},
        {"gate": files["metrics.json"]},
        [tmp_path / "c.svg"],
        tmp_path / "c.csv",
        **LOOK,
    )
    text = (tmp_path / "c.svg").read_text()
    assert ">no bin has<" in text
    assert ">no cell was judged<" in text


def test_dataset_composition(study: Path, tmp_path: Path) -> None:
    draw_dataset_composition(study / "counts.csv", *outputs(tmp_path, "data"), classes=SHEET, **LOOK)
    numbers = check(tmp_path, "data")
    counts = pd.read_csv(study / "counts.csv")
    used = counts[counts["split"] != "buffer"]
    assert (numbers.groupby("ring")["cells"].sum() == used["cells"].sum()).all()
    assert set(numbers["ring"]) == {"organ", "class", "bar"}
    for role, part in numbers.groupby("role"):
        bars = list(dict.fromkeys(part.loc[part["ring"] == "bar", "organ"]))
        assert part.loc[part["ring"] == "organ", "organ"].tolist() == bars, role
    rings = numbers[numbers["ring"] != "bar"]
    np.testing.assert_allclose(rings.groupby(["role", "ring"])["angle_deg"].sum(), 360)
    # By hand: the angle of an organ follows the root of its cells; its classes fill it.
    cells = used[used["role"] == "cohort"].groupby("organ")["cells"].sum()
    organs = numbers.query("ring == 'organ' and role == 'cohort'").set_index("organ")
    np.testing.assert_allclose(organs["angle_deg"], (360 * np.sqrt(cells) / np.sqrt(cells).sum())[organs.index])
    np.testing.assert_allclose(organs["share"], (cells / cells.sum())[organs.index])
    inside = numbers.query("ring == 'class' and role == 'cohort'").groupby("organ")["angle_deg"]
    np.testing.assert_allclose(inside.sum()[organs.index], organs["angle_deg"])
    assert inside.min().min() >= 2


@pytest.mark.parametrize("role", ["train", "none"])
def test_dataset_composition_without_cells_says_so(tmp_path: Path, role: str) -> None:
    counts = pd.DataFrame(
        {"slide": ["a"], "organ": ["ovary"], "role": ["train"], "split": ["train"], "class": ["T_Cell"]}
    )
    counts.assign(cells=5)[counts["role"] == role].to_csv(tmp_path / "in.csv", index=False)
    draw_dataset_composition(tmp_path / "in.csv", [tmp_path / "d.svg"], tmp_path / "d.csv", classes=SHEET, **LOOK)
    text = (tmp_path / "d.svg").read_text()
    assert text.count("No labelled cells") >= 1
    assert "square root of the cells" in text
    assert len(pd.read_csv(tmp_path / "d.csv")) == (3 if role == "train" else 0)


def test_wedges_follow_the_square_root_with_a_floor() -> None:
    np.testing.assert_allclose(wedge_angles(np.array([4, 1]), 90), [60, 30])
    angles = wedge_angles(np.array([10_000, 10_000, 1]), 90, 2)
    assert angles.tolist() == pytest.approx([44, 44, 2])
    # The published angles of breast: shares 50.4, 24.5, 17.8, 3.8 and 3.5 per cent on 79.62 degrees.
    published = wedge_angles(np.array([50.4, 24.5, 17.8, 3.8, 3.5]), 79.62, 2)
    np.testing.assert_allclose(published, [28.12, 19.61, 16.72, 7.74, 7.44], atol=0.05)


def test_alignment(tmp_path: Path) -> None:
    facts = {
        "mpp_he": 0.27,
        "embedded_mpp": None,
        "rotation_deg": -89.5,
        "mirrored": False,
        "residual_um": 0.1,
        "residual_x_um": 0.1,
        "residual_y_um": 0.0,
        "residual_sem_um": 0.02,
        "score": 50.0,
        "n_measured": 900,
        "verdict": "pass",
    }
    unknown = dict.fromkeys(facts) | {"mpp_he": 0.3, "verdict": "unknown", "mirrored": True}
    image = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    field = Field(image, [np.array([[10.0, 10], [30, 10], [20, 30]])], 0.25, (40.0, 40.0), 80.0)
    draw_alignment(
        {"a": facts, "b": unknown}, {"a": field, "b": field}, *outputs(tmp_path, "alignment"), mpp=0.5, **LOOK
    )
    assert check(tmp_path, "alignment")["residual_um"].isna().tolist() == [False, True]


def test_funnel(tmp_path: Path) -> None:
    rows = [("a", "all cells", 100, 0, ""), ("a", "labelled", 80, 20, "low_counts 20")]
    pd.DataFrame(rows, columns=FUNNEL).to_csv(tmp_path / "in.csv", index=False)
    draw_funnel(tmp_path / "in.csv", *outputs(tmp_path, "funnel"), **LOOK)
    check(tmp_path, "funnel")


def test_maps_and_their_cells(study: Path, tmp_path: Path) -> None:
    paths = {m: [study / "predictions" / m / f"{c}.parquet" for c in COHORTS[:3]] for m in ("local", "global", "gate")}
    models = read_models(paths)
    cells = choose_cells(models, per_cohort=2)
    assert cells["slide"].value_counts().to_dict() == dict.fromkeys(COHORTS[:3], 2)
    assert (cells["gate_prediction"] == cells["label"]).all()
    right = (cells[["local_prediction", "global_prediction"]].to_numpy() == cells[["label"]].to_numpy()).sum(axis=1)
    assert (right == 1).all()
    asked = choose_cells(models, per_cohort=2, cells=[f"{cells['slide'][3]}:{cells['cell_id'][3]}"])
    assert asked["cell_id"].tolist() == [cells["cell_id"][3]]
    for wrong in ("lung_h:none", "none"):
        with pytest.raises(UserError, match="not among"):
            choose_cells(models, per_cohort=2, cells=[wrong])
    rng = np.random.default_rng(0)
    for name, table in (("some", cells[:2]), ("none", cells[:0])):
        n = len(table)
        table.to_csv(tmp_path / "cells.csv", index=False)
        np.savez(
            tmp_path / "maps.npz",
            local_image=rng.integers(0, 255, (n, 56, 56, 3), dtype=np.uint8),
            global_image=rng.integers(0, 255, (n, 64, 64, 3), dtype=np.uint8),
            local_cam=rng.random((n, 14, 14)),
            global_local_cam=rng.random((n, 14, 14)),
            global_cam=rng.random((n, 16, 16)),
            gated_cam=rng.random((n, 16, 16)),
            local_cam_layer=np.array("stage 3 of 5, 10 × 10"),
        )
        given, look = (tmp_path / "maps.npz", tmp_path / "cells.csv"), {**SIZES, **LOOK}
        draw_branch_maps(*given, *outputs(tmp_path, f"{name}_own"), **look)
        others = table[["slide", "cell_id"]]
        if n:
            others = others.assign(plip_prediction="B_Cell", plip_probability=0.25, plip_stand_in=True)
        np.savez(tmp_path / "others.npz", **({"plip_cam": rng.random((n, 8, 8))} if n else {}))
        others.to_csv(tmp_path / "others.csv", index=False)
        baselines = (tmp_path / "others.npz", tmp_path / "others.csv")
        draw_gradcam(*given, *baselines, *with_svg(tmp_path, name), **look)
        others[["slide", "cell_id"]].to_csv(tmp_path / "others.csv", index=False)
        draw_gradcam(*given, *baselines, *with_svg(tmp_path, f"{name}_alone"), **look)
    for name in ("some", "some_own", "some_alone"):
        assert check(tmp_path, name)["cell_id"].tolist() == cells["cell_id"][:2].tolist()
    text = (tmp_path / "some.svg").read_text(encoding="utf-8")
    assert "(stand-in)" in text
    assert ">stage 3 of 5, 10 × 10<" in text
    assert ">PLIP<" in text
    assert "PLIP" not in (tmp_path / "some_alone.svg").read_text(encoding="utf-8")
    assert pd.read_csv(tmp_path / "some.csv")["plip_probability"].tolist() == [0.25, 0.25]
    cells[:2].to_csv(tmp_path / "cells.csv", index=False)
    pd.DataFrame({"slide": ["a", "b"], "cell_id": ["c", "d"]}).to_csv(tmp_path / "others.csv", index=False)
    with pytest.raises(UserError, match="other cells"):
        draw_gradcam(*given, *baselines, *outputs(tmp_path, "mixed"), **look)


def test_many_cells_with_numbers_for_names_make_a_long_figure(tmp_path: Path) -> None:
    n, rng = 30, np.random.default_rng(0)
    table = pd.DataFrame({"slide": "lung_h", "cell_id": [f"{i:05d}" for i in range(n)], "label": "B_Cell", "gate": 0.5})
    for model in ("local", "global", "gate"):
        table[f"{model}_prediction"], table[f"{model}_probability"] = "B_Cell", 0.5
    table.to_csv(tmp_path / "cells.csv", index=False)
    image = rng.integers(0, 255, (n, 8, 8, 3), dtype=np.uint8)
    cams = {f"{name}_cam": rng.random((n, 8, 8)) for name in ("local", "global_local", "global", "gated")}
    np.savez(tmp_path / "maps.npz", local_image=image, global_image=image, **cams)
    draw_branch_maps(
        tmp_path / "maps.npz", tmp_path / "cells.csv", [tmp_path / "a.png"], tmp_path / "a.csv", **SIZES, **LOOK
    )
    assert pd.read_csv(tmp_path / "a.csv", dtype=str)["cell_id"].tolist() == table["cell_id"].tolist()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.height / picture.info["dpi"][1] * 25.4 > n * 12


@pytest.mark.parametrize("whose", ["local", "context", "none"])
def test_gradcam_controls(tmp_path: Path, whose: str) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "slide": ["lung_h", "lung_h"],
            "cell_id": ["a", "b"],
            "label": ["B_Cell", "Ductal"],
            "prediction": ["B_Cell", "B_Cell"],
            "probability": [0.5, 0.6],
            "layer": "stage 3 of 5, 3 × 3",
            "places": 9,
            "spearman_whole": [-0.25, np.nan],
            "radius_px": [20.0, np.nan],
            **{f"in_cell_{name}": [1.26, np.nan] for name in ("cam", "random", "released", "rollout")},
            "rollout_of": whose,
        }
    )
    arrays = {name: rng.random((2, 28, 28)) for name in ("cam", "random", "released")}
    arrays["local_image"] = rng.integers(0, 255, (2, 28, 28, 3), dtype=np.uint8)
    if whose != "none":
        arrays |= {"rollout": rng.random((2, 32, 32)), "rollout_image": arrays["local_image"]}
    for name, rows in (("some", table), ("none", table[:0])):
        np.savez(tmp_path / "maps.npz", **(arrays if len(rows) else {}))
        rows[list(rows)[: None if len(rows) else 3]].to_csv(tmp_path / "controls.csv", index=False)
        given = tmp_path / "maps.npz", tmp_path / "controls.csv"
        draw_gradcam_controls(*given, *with_svg(tmp_path, name), **SIZES, **LOOK)
    check(tmp_path, "some")
    text = (tmp_path / "some.svg").read_text(encoding="utf-8")
    assert "rank correlation \N{MINUS SIGN}0.25" in text
    assert "1.3 × chance in the cell" in text
    assert "rank correlation not known" in text
    assert ("No network here" in text) == (whose == "none")
    assert text.count(">stage 3 of 5, 3 × 3<") == 2
    assert "over 1 cell: 1.3 × chance with learned weights, 1.3 × with random ones" in text
    assert "Mean rank correlation with random weights \N{MINUS SIGN}0.25: too few cells to say whether the maps" in text
    assert "No cell fits" in (tmp_path / "none.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("own", "random", "likeness", "words"),
    [
        ([2.0, 2.2, 2.1], [1.0, 1.1, 1.0], 0.1, "Training draws the map to the cell. "),
        ([1.0, 1.1, 1.0], [2.0, 2.2, 2.1], 0.1, "Training draws the map away from the cell. "),
        ([1.0, 3.0, 2.0], [2.0, 1.0, 2.5], 0.1, "That is no clear difference: these cells do not show"),
        ([1.0, np.nan, np.nan], [2.0, 1.0, 1.0], 0.1, "One cell says nothing about training. "),
        ([1.0] * 3, [2.0] * 3, 0.1, "0.10: the maps change with the weights, so they tell of what was learned."),
        ([1.0] * 3, [2.0] * 3, 0.3, "0.30: the maps keep some likeness when the weights go"),
        ([1.0] * 3, [2.0] * 3, 0.6, "0.60: the maps hardly change with the weights"),
        ([np.nan] * 3, [2.0] * 3, np.nan, "Rank correlation with random weights: not known."),
    ],
)
def test_the_controls_are_told_in_words(own: list[float], random: list[float], likeness: float, words: str) -> None:
    table = pd.DataFrame({"in_cell_cam": own, "in_cell_random": random, "spearman_whole": likeness})
    assert words in verdict(table)
    known = table[["in_cell_cam", "in_cell_random"]].dropna()
    if len(known):
        means = known.mean()
        told = f"{means.iloc[0]:.1f} × chance with learned weights, {means.iloc[1]:.1f} × with random ones"
        assert told in verdict(table)


def test_windows_beyond_the_slide_have_an_edge() -> None:
    import matplotlib.pyplot as plt

    from nuclass.figures.gradcam import show_map

    fig, ax = plt.subplots(figsize=(1, 1), dpi=200)
    show_map(ax, np.full((8, 8, 3), 255, np.uint8), None, 224)
    fig.canvas.draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    plt.close(fig)
    dark = pixels.min(axis=2) < 220
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert dark[rows[0] + 3 : rows[-1] - 3, columns[[0, -1]]].all()
    assert dark[rows[[0, -1]], columns[0] + 3 : columns[-1] - 3].all()


def test_every_class_has_one_colour_and_place() -> None:
    sheet = Classes.read(SHEET)
    assert sheet.table["colour"].is_unique
    assert sheet.table["colour"].str.fullmatch("#[0-9A-Fa-f]{6}").all()
    assert sheet.ordered(reversed(sheet.table.index)) == sheet.ordered(sheet.table.index)
    assert sheet.ordered(["zzz", "Acinar", "aaa"]) == ["Acinar", "aaa", "zzz"]


def test_the_small_print_says_synthetic(tmp_path: Path) -> None:
    rows = [("a", "all cells", 100, 0, "")]
    pd.DataFrame(rows, columns=FUNNEL).to_csv(tmp_path / "in.csv", index=False)
    draw_funnel(tmp_path / "in.csv", [tmp_path / "a.svg"], tmp_path / "a.csv", **LOOK)
    draw_funnel(tmp_path / "in.csv", [tmp_path / "b.svg"], tmp_path / "b.csv", style=STYLE, synthetic=False)
    assert "synthetic study" in (tmp_path / "a.svg").read_text()
    assert "synthetic study" not in (tmp_path / "b.svg").read_text()
