from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from fake_study import CLASSES, write_predictions
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_json, write_parquet
from nuclass.core.names import probability_columns
from nuclass.core.readings import EMBEDDING_METRICS
from nuclass.evaluation.embedding_map import MAP_COLUMNS, balanced_draw, lay_out, map_embeddings, principal_components
from nuclass.evaluation.embedding_space import compare_embeddings
from nuclass.evaluation.metrics import ece
from nuclass.evaluation.organ_use import describe_organ_use
from nuclass.evaluation.predictions import read_predictions
from nuclass.figures.embedding_map import draw_umap
from nuclass.figures.film_vs_concat import METRICS, PAGES, draw_film_vs_concat
from nuclass.figures.pages import mm_figure, save_pages
from nuclass.figures.points import organ_colours, random_order, slide_colours
from nuclass.figures.spatial import draw_spatial, read_slide_map
from test_figures import pdf_text

ROOT = Path(__file__).parents[1]
SHEET = ROOT / "resources" / "classes.tsv"
STYLE = ROOT / "resources" / "style" / "nuclass.mplstyle"
LOOK = {"classes": SHEET, "style": STYLE, "synthetic": True}
OPTIONS = {"subset": 240, "seed": 42, "draws": 30, "mpp": 0.25, "block_um": 150}
SLIDES = ("ovary_h", "lung_h", "pancreas_h")


def separate(path: Path, strength: float) -> None:
    """Give cells embeddings that lie by their label, more clearly with ``strength``."""
    table = pd.read_parquet(path)
    y = np.array([CLASSES.index(name) for name in table["label"]])
    centres = np.random.default_rng(0).normal(size=(len(CLASSES), 8))
    noise = np.random.default_rng(len(table)).normal(size=(len(table), 8))
    with h5py.File(path.with_suffix(".h5"), "a") as h5:
        h5["embeddings"][...] = (strength * centres[y] + noise).astype(np.float16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The prediction tables of each model, their embeddings in order of the labels."""
    paths = write_predictions(tmp_path_factory.mktemp("predictions"), n=120)
    for model, strength in (("gate", 4.0), ("local", 1.0), ("global", 2.0)):
        for path in paths[model].values():
            separate(path, strength)
    return {model: list(own.values()) for model, own in paths.items()}


@pytest.fixture(scope="module")
def organ_models(files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    return {"film": files["gate"], "concat": files["local"], "none": files["global"]}


def pages_of(pdf: Path) -> int:
    content = pdf_text(pdf)
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content
    return len(re.findall(rb"/Type /Page[\s/]", content))


def size_mm(png: Path) -> tuple[float, float]:
    with Image.open(png) as image:
        assert np.asarray(image.convert("L")).std() > 3
        return image.width / image.info["dpi"][0] * 25.4, image.height / image.info["dpi"][1] * 25.4


def test_draw_is_balanced_and_random_within_a_group() -> None:
    groups = np.repeat(["a", "b", "c"], [5, 100, 1000])
    rows = balanced_draw(groups, 105, seed=1)
    assert pd.Series(groups[rows]).value_counts().to_dict() == {"a": 5, "b": 50, "c": 50}
    np.testing.assert_array_equal(rows, np.unique(rows))
    np.testing.assert_array_equal(rows, balanced_draw(groups, 105, seed=1))
    assert not np.array_equal(rows, balanced_draw(groups, 105, seed=2))
    np.testing.assert_array_equal(balanced_draw(groups, 5000, seed=1), np.arange(1105))
    own = np.concatenate([balanced_draw(np.repeat("a", 50), 10, seed) for seed in range(400)])
    assert np.bincount(own, minlength=50).min() > 40
    with pytest.raises(UserError, match="No cell"):
        balanced_draw(groups, 0, seed=1)


def test_components_are_those_of_pca() -> None:
    values = np.random.default_rng(3).normal(size=(60, 7)).astype(np.float32) * np.arange(7, 0, -1, dtype=np.float32)
    ours = principal_components(values, 3)
    theirs = PCA(3).fit_transform(values)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-3)
    np.testing.assert_allclose(ours, principal_components(values.copy(), 3))
    assert principal_components(values[:2], 50).shape == (2, 7)


def test_layout_is_the_same_for_a_seed_and_keeps_groups_apart() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 40)
    values = np.eye(6, dtype=np.float32)[group] + 0.05 * rng.normal(size=(120, 6)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    place = lay_out(values, 7)
    np.testing.assert_array_equal(place, lay_out(values, 7))
    assert not np.array_equal(place, lay_out(values, 8))
    gaps = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (group[gaps.argmin(axis=1)] == group).all()


def test_map_holds_the_same_drawn_cells_of_each_model(files: dict[str, list[Path]]) -> None:
    table = map_embeddings(files, seed=1, limit=150)
    assert tuple(table.columns) == MAP_COLUMNS
    cells = {model: part[["slide", "cell_id", "label"]].to_numpy().tolist() for model, part in table.groupby("model")}
    assert cells["gate"] == cells["local"] == cells["global"]
    assert table.groupby(["model", "slide"]).size().eq(50).all()
    truth = read_predictions(files["local"])
    drawn = table[table["model"] == "local"].set_index(["slide", "cell_id"])
    own = truth.table.set_index(["slide", "cell_id"]).loc[drawn.index]
    assert drawn["prediction"].tolist() == own["prediction"].tolist()
    pd.testing.assert_frame_equal(table, map_embeddings(files, seed=1, limit=150))
    # Cells of well separated embeddings lie beside cells of their class: they are not shuffled against the labels.
    fused = table[table["model"] == "gate"]
    place, label = fused[["umap_1", "umap_2"]].to_numpy(), fused["label"].to_numpy()
    gaps = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (label[gaps.argmin(axis=1)] == label).mean() > 0.9


def test_figure_umap(files: dict[str, list[Path]], tmp_path: Path) -> None:
    table = map_embeddings(files, seed=1, limit=150)
    write_parquet(tmp_path / "map.parquet", table)
    outputs = [tmp_path / f"umap.{ending}" for ending in ("pdf", "png", "jpg")]
    draw_umap(tmp_path / "map.parquet", outputs, tmp_path / "umap.csv", **LOOK)
    drawn = pd.read_csv(tmp_path / "umap.csv")
    pd.testing.assert_frame_equal(drawn, table, check_dtype=False, atol=1e-4)
    assert pages_of(outputs[0]) == 1
    width, height = size_mm(outputs[1])
    assert width == pytest.approx(183, abs=0.2)
    assert height <= 240


@pytest.mark.parametrize("cells", [0, 1, 9, 40])
def test_figure_umap_of_little(tmp_path: Path, cells: int) -> None:
    table = pd.DataFrame(
        {
            "model": "gate",
            "slide": "lung_h",
            "organ": "lung",
            "cell_id": [f"c{i}" for i in range(cells)],
            "label": "T_Cell",
            "prediction": "T_Cell",
            "umap_1": np.arange(cells, dtype=np.float32),
            "umap_2": 0.0,
        }
    )[list(MAP_COLUMNS)]
    write_parquet(tmp_path / "map.parquet", table)
    draw_umap(tmp_path / "map.parquet", [tmp_path / "umap.svg"], tmp_path / "umap.csv", **LOOK)
    text = (tmp_path / "umap.svg").read_text()
    assert len(pd.read_csv(tmp_path / "umap.csv")) == cells
    assert ("too few for a map" in text) == (0 < cells < 15)
    assert ("There is no cell to show" in text) == (cells == 0)
    assert ("one group only" in text) == (cells == 40)


def test_columns_by_organ_and_slide_are_one_only_where_they_are_the_same(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "model": "gate",
            "slide": np.repeat(["lung_h", "lung_i"], 20),
            "organ": "lung",
            "cell_id": [f"c{i}" for i in range(40)],
            "label": "T_Cell",
            "prediction": "B_Cell",
            "umap_1": np.arange(40.0),
            "umap_2": 0.0,
        }
    )
    for organs, texts in (
        ("lung", ("By organ", "By slide")),
        (["lung"] * 20 + ["ovary"] * 20, ("By organ and slide",)),
    ):
        write_parquet(tmp_path / "map.parquet", table.assign(organ=organs))
        draw_umap(tmp_path / "map.parquet", [tmp_path / "umap.svg"], tmp_path / "umap.csv", **LOOK)
        text = (tmp_path / "umap.svg").read_text()
        assert all(f">{name}<" in text for name in texts)
        assert "40 of 40 wrong (100.0 %)" in text


def cohort_table(n: int, seed: int = 0, side_px: float = 4000.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = np.array(["T_Cell", "B_Cell", "Fibroblast"], dtype=object)
    probs = rng.dirichlet(np.ones(3), n)
    table = pd.DataFrame(
        {
            "cell_id": np.char.add("c", np.arange(n).astype(str)).astype(object),
            "slide": "lung_h",
            "organ": "lung",
            "split": "test",
            "x_px": rng.uniform(0, side_px, n),
            "y_px": rng.uniform(0, side_px / 2, n),
            "label": names[rng.integers(0, 3, n)],
            "prediction": names[probs.argmax(axis=1)] if n else np.empty(0, dtype=object),
            "confidence": probs.max(axis=1) if n else np.empty(0),
            "gate": rng.random(n),
        }
    )
    table[probability_columns(list(names))] = probs
    return table


def spatial_outputs(folder: Path, slides: tuple[str, ...]) -> list[Path]:
    return [folder / "spatial.pdf", folder / "spatial.png", *[folder / f"spatial_{slide}.png" for slide in slides]]


def test_figure_spatial(tmp_path: Path) -> None:
    table = cohort_table(400)
    table.loc[:4, "label"] = ["", "Monocyte", "T_Cell", "T_Cell", "T_Cell"]
    table.loc[2, "x_px"] = np.nan
    write_parquet(tmp_path / "lung_h.parquet", table)
    write_parquet(tmp_path / "ovary_h.parquet", cohort_table(0))
    slides = ("lung_h", "ovary_h")
    outputs = spatial_outputs(tmp_path, slides)
    paths = {slide: tmp_path / f"{slide}.parquet" for slide in slides}
    draw_spatial(paths, {}, outputs, tmp_path / "spatial.csv", mpp=0.25, **LOOK)
    assert pages_of(outputs[0]) == 3
    for png in outputs[1:]:
        width, height = size_mm(png)
        assert width == pytest.approx(183, abs=0.2)
        assert height <= 240.2
    numbers = pd.read_csv(tmp_path / "spatial.csv").set_index(["slide", "class"])
    judged = table.iloc[3:]
    whole = numbers.loc[("lung_h", "all classes")]
    assert whole["cells"] == len(judged)
    assert whole["right"] == (judged["label"] == judged["prediction"]).sum()
    assert whole["accuracy"] == pytest.approx((judged["label"] == judged["prediction"]).mean())
    one = judged[judged["label"] == "B_Cell"]
    row = numbers.loc[("lung_h", "B_Cell")]
    assert (row["cells"], row["predicted"]) == (len(one), (judged["prediction"] == "B_Cell").sum())
    assert row["gate"] == pytest.approx(one["gate"].mean())
    assert row["confidence"] == pytest.approx(one["confidence"].mean())
    assert numbers.loc[("ovary_h", "all classes"), "cells"] == 0
    shown = read_slide_map("lung_h", paths["lung_h"], None, 0.25)
    np.testing.assert_allclose(shown.cells["x_um"], judged["x_px"] * 0.25)
    assert shown.placeless == 1
    assert shown.facts == f"lung h: {len(judged)} cells, accuracy {whole['accuracy']:.3f}, 1 more have no place"
    assert shown.aspect == pytest.approx(0.5, abs=0.02)


def test_picture_behind_the_cells_is_the_slide_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    class Store:
        mpp, levels = 0.25, 4

        def __init__(self, path: Path) -> None:
            asked["path"] = path

        def __enter__(self) -> Store:
            return self

        def __exit__(self, *_: object) -> None: ...

        def region(self, x0: int, y0: int, width: int, height: int, level: int) -> np.ndarray:
            asked.update(x0=x0, y0=y0, width=width, height=height, level=level)
            return np.full((height, width, 3), np.linspace(0, 255, width)[None, :, None], dtype=np.uint8)

    monkeypatch.setattr("nuclass.slides.store.SlideStore", Store)
    table = cohort_table(300).assign(x_px=lambda t: t["x_px"] + 800)
    write_parquet(tmp_path / "lung_h.parquet", table)
    shown = read_slide_map("lung_h", tmp_path / "lung_h.parquet", tmp_path / "he.ome.zarr", 0.25)
    scale = 0.25 * 2 ** asked["level"]
    left, right, top, bottom = shown.frame
    assert asked["x0"] * scale == pytest.approx(left, abs=scale)
    assert asked["y0"] * scale == pytest.approx(top, abs=scale)
    assert asked["width"] * scale == pytest.approx(right - left, abs=scale)
    assert asked["height"] * scale == pytest.approx(bottom - top, abs=scale)
    assert shown.picture is not None
    assert max(shown.picture.shape) <= 600
    assert (np.diff(shown.picture.astype(int), axis=1) >= 0).all()
    assert shown.picture.min() > 140


def test_many_cells_stay_small_in_the_pdf(tmp_path: Path) -> None:
    """300,000 points are drawn as a picture inside the page: as vectors they would take some 40 MB."""
    write_parquet(tmp_path / "lung_h.parquet", cohort_table(300_000, side_px=40_000))
    draw_spatial(
        {"lung_h": tmp_path / "lung_h.parquet"}, {}, [tmp_path / "spatial.pdf"], tmp_path / "s.csv", mpp=0.25, **LOOK
    )
    assert (tmp_path / "spatial.pdf").stat().st_size < 12e6
    assert pages_of(tmp_path / "spatial.pdf") == 2


def test_columns_that_are_missing_are_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "lung_h.parquet", cohort_table(5).drop(columns="gate"))
    with pytest.raises(UserError, match="lacks columns"):
        read_slide_map("lung_h", tmp_path / "lung_h.parquet", None, 0.25)


def test_organ_use_agrees_with_the_table_of_metrics(organ_models: dict[str, list[Path]]) -> None:
    found = describe_organ_use(organ_models, **OPTIONS)
    table = compare_embeddings(organ_models, **OPTIONS)
    whole = found["organs"][found["organs"]["organ"] == "all"].set_index("name")
    for name in organ_models:
        cells = found["cells"][found["cells"]["model"] == name]
        right = cells["label"] == cells["prediction"]
        assert right.mean() == pytest.approx(table["models"][name]["accuracy"])
        assert whole.loc[name, "value"] == pytest.approx(table["models"][name]["accuracy"])
        by_organ = right.groupby(cells["organ"]).mean()
        rows = found["organs"][found["organs"]["name"] == name].set_index("organ")
        for organ, accuracy in by_organ.items():
            assert rows.loc[organ, "value"] == pytest.approx(accuracy)
            assert rows.loc[organ, "low"] <= accuracy <= rows.loc[organ, "high"]
            assert rows.loc[organ, "cells"] == (cells["organ"] == organ).sum()
        counted = found["confusion"][found["confusion"]["name"] == name]
        pairs = cells.groupby(["label", "prediction"]).size()
        one = counted.set_index(["true", "predicted"])["cells"]
        assert one[one > 0].to_dict() == pairs.to_dict()
        bins = found["reliability"][found["reliability"]["name"] == name].dropna()
        error = (bins["cells"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / bins["cells"].sum()
        assert error == pytest.approx(table["models"][name]["ece"])
    difference = found["confusion"].pivot_table(index=["true", "predicted"], columns="name", values="rate")
    np.testing.assert_allclose(difference["film-concat"], difference["film"] - difference["concat"], atol=1e-12)
    assert whole.loc["film-concat", "value"] == pytest.approx(table["differences"]["film-concat"]["accuracy"]["value"])
    assert whole.loc["film-concat", "low"] == pytest.approx(table["differences"]["film-concat"]["accuracy"]["low"])


def film_inputs(folder: Path, models: dict[str, list[Path]]) -> tuple[Path, dict[str, Path]]:
    write_json(folder / "metrics.json", compare_embeddings(models, **OPTIONS))
    paths = {}
    for part, table in describe_organ_use(models, **OPTIONS).items():
        paths[part] = folder / f"{part}.{'parquet' if part == 'cells' else 'csv'}"
        (write_parquet if part == "cells" else lambda path, frame: frame.to_csv(path, index=False))(paths[part], table)
    return folder / "metrics.json", paths


def test_figure_film_vs_concat(organ_models: dict[str, list[Path]], tmp_path: Path) -> None:
    assert list(METRICS) == list(EMBEDDING_METRICS)
    result, paths = film_inputs(tmp_path, organ_models)
    pngs = [tmp_path / "f.png", *[tmp_path / f"f_{page}.png" for page in PAGES[1:]]]
    draw_film_vs_concat(result, paths, [tmp_path / "f.pdf", *pngs], tmp_path / "f.csv", **LOOK)
    assert pages_of(tmp_path / "f.pdf") == len(PAGES)
    for png in pngs:
        width, height = size_mm(png)
        assert width == pytest.approx(183, abs=0.2)
        assert height <= 240.2
    numbers = pd.read_csv(tmp_path / "f.csv")
    assert set(numbers["page"]) == set(PAGES)
    metrics = numbers[numbers["page"] == "metrics"].set_index(["name", "metric"])["value"]
    film, concat = (read_predictions(organ_models[name]) for name in ("film", "concat"))
    chosen = numbers[(numbers["page"] == "embedding") & (numbers["name"] == "film")]
    rows = film.keys.get_indexer(pd.MultiIndex.from_frame(chosen[["slide", "cell_id"]]))
    assert len(rows) == OPTIONS["subset"]
    assert metrics["film", "ece"] == pytest.approx(ece(film.y[rows], film.probs[rows], bins=10))
    both = [(one.predicted[rows] == one.y[rows]).mean() for one in (film, concat)]
    assert metrics["film-concat", "accuracy"] == pytest.approx(both[0] - both[1])
    gap = metrics["film", "silhouette"] - metrics["none", "silhouette"]
    assert metrics["film-none", "silhouette"] == pytest.approx(gap)


def test_figure_film_vs_concat_of_one_organ_and_two_models(organ_models: dict[str, list[Path]], tmp_path: Path) -> None:
    models = {name: organ_models[name][1:2] for name in ("film", "concat")}
    result, paths = film_inputs(tmp_path, models)
    svgs = [tmp_path / "f.svg", *[tmp_path / f"f_{page}.svg" for page in PAGES[1:]]]
    draw_film_vs_concat(result, paths, svgs, tmp_path / "f.csv", **LOOK)
    assert "All cells are of one organ" in svgs[0].read_text()
    numbers = pd.read_csv(tmp_path / "f.csv")
    assert numbers[(numbers["metric"] == "organ_leakage")]["value"].isna().all()


def test_values_that_look_alike_are_bold_alike(organ_models: dict[str, list[Path]], tmp_path: Path) -> None:
    result, paths = film_inputs(tmp_path, {name: organ_models[name][1:2] for name in ("film", "concat")})
    found = read_json(result)
    found["models"]["film"]["accuracy"], found["models"]["concat"]["accuracy"] = 0.50112, 0.50114
    write_json(result, found)
    svgs = [tmp_path / "f.svg", *[tmp_path / f"f_{page}.svg" for page in PAGES[1:]]]
    draw_film_vs_concat(result, paths, svgs, tmp_path / "f.csv", **LOOK)
    looks = re.findall(r"<text style=\"([^\"]*)\"[^>]*>0\.501<", svgs[0].read_text())
    assert len(looks) == 2
    assert all("bold" in look or "700" in look for look in looks), looks


def test_pages_and_files_must_agree(tmp_path: Path) -> None:
    numbers = pd.DataFrame({"a": [1]})
    for files in (["f.png"], ["f.png", "f_2.png", "f_3.png"]):
        pages = (mm_figure(STYLE, 40, 30) for _ in range(2))
        with pytest.raises(ValueError, match="pages"):
            save_pages(pages, [tmp_path / name for name in files], tmp_path / "f.csv", numbers, synthetic=False)
        assert not (tmp_path / "f.csv").exists()


def test_colours_and_order() -> None:
    assert organ_colours(["lung", "ovary"])["lung"] == organ_colours(["lung"])["lung"]
    assert len(set(organ_colours(["lung", "skin", "brain", "ovary"]).values())) == 4
    assert len(set(slide_colours([f"s{i}" for i in range(20)]).values())) == 20
    order = random_order(1000)
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
