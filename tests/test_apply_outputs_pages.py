"""The pages of a run: the explorer of one's own slide, and the summary."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from apply_example import SHEET, table_of, write_run, write_slide, write_tables
from browser import CHROMIUM, chromium
from nuclass.apply import out_summary_maps
from nuclass.apply.out_explorer import folder_name
from nuclass.apply.out_read import Run
from nuclass.apply.outputs import write_outputs
from nuclass.explorer.cells import NONE
from test_explorer import numbers, received

READY = "typeof NuClass !== 'undefined' && NuClass.app?.ready"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("run")
    table = write_run(folder)
    write_outputs(folder, ["explorer", "summary"], store=folder / "he.ome.zarr", classes=SHEET)
    return folder, table


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("local")
    table = write_run(folder, n=20, model="local", outlines=False, slide='a slide #1 of "long" name ' * 12, organ=None)
    write_outputs(folder, ["explorer", "summary"], store=folder / "he.ome.zarr", classes=SHEET)
    return folder, table


def test_explorer_is_one_slide_without_labels(run: tuple[Path, pd.DataFrame]) -> None:
    folder, table = run[0] / "explorer", run[1]
    study = received(folder / "study.js")[1]
    assert [(s["name"], s["organ"], s["role"], s["picture"]) for s in study["slides"]] == [
        ("ovary_1", "ovary", "own", True)
    ]
    assert (study["windows"], study["mpp"], study["synthetic"]) == ({"local": 224, "global": 1024}, 0.25, False)
    key, head = received(folder / "slides/ovary_1/cells/points.js")
    assert key == "ovary_1/points"
    assert (head["labelled"], head["main"], head["cells"], head["unpredicted"]) == (False, "gate", 57, 3)
    ids = received(folder / "slides/ovary_1/cells/ids.js")[1].split("\n")
    rows = table.set_index("cell_id").loc[ids]
    names = [entry["name"] for entry in head["classes"]]
    said = [names[code] if code != NONE else "" for code in numbers(head["prediction"], "u1")]
    assert said == rows["class"].tolist(), "a cell on which the model abstains has no class"
    assert set(numbers(head["label"], "u1")) == {NONE}
    details = received(folder / "slides/ovary_1/cells/details/0.js")[1]
    for model, column in (("gate", "prediction"), ("local", "local_prediction"), ("global", "global_prediction")):
        told = [names[code] for code in numbers(details["models"][model]["prediction"], "u1")]
        assert told == rows[column].tolist()
    assert (folder / "slides/ovary_1/tiles/slide.dzi").is_file()
    own = next(entry for entry in head["classes"] if entry["name"] == "Hepatocyte")
    assert own["colour"] not in ("#8C8C8C", "nan")


def test_explorer_of_one_branch_has_no_gate(local_run: tuple[Path, pd.DataFrame]) -> None:
    folder = local_run[0] / "explorer"
    (slide,) = received(folder / "study.js")[1]["slides"]
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", slide["name"])
    assert slide["title"].startswith('a slide #1 of "long" name')
    assert slide["organ"] == "organ not known"
    head = received(folder / f"slides/{slide['name']}/cells/points.js")[1]
    assert (head["gate"], head["main"]) == (None, "local")
    details = received(folder / f"slides/{slide['name']}/cells/details/0.js")[1]
    assert (details["gate"], list(details["models"])) == (None, ["local"])


def test_names_of_folders() -> None:
    assert [folder_name(name) for name in ("ovary_1", "a b/c #1.svs", "..", "é", "x" * 200)] == [
        "ovary_1", "a_b_c_1.svs", "slide", "slide", "x" * 60,
    ]  # fmt: skip


def test_explorer_without_cells(tmp_path: Path) -> None:
    write_tables(tmp_path, table_of(3))
    store = write_slide(tmp_path, np.empty((0, 2)))
    write_outputs(tmp_path, ["explorer", "summary"], store=store, classes=SHEET)
    head = received(tmp_path / "explorer/slides/ovary_1/cells/points.js")[1]
    assert (head["cells"], head["unpredicted"]) == (0, 3)
    text = (tmp_path / "summary.html").read_text()
    assert "No cell was typed." in text
    assert "off the slide 3" in text


class Page(HTMLParser):
    """Collects the tags, the text and the addresses of a page, and that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.sources = "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_summary_tells_what_came_out(run: tuple[Path, pd.DataFrame]) -> None:
    folder, table = run
    text = (folder / "summary.html").read_text()
    page = Page(text)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "url(" not in text
    assert "@import" not in text
    states = table["status"].value_counts()
    assert f"{states['typed']}typed · {100 * states['typed'] / 60:.1f} %" in page.text
    assert f"{states['abstained']}abstained" in page.text
    assert "3left out · 5.0 %off the slide 3" in page.text
    for name, n in table.loc[table["status"] == "typed", "class"].value_counts().items():
        assert re.search(f"{str(name).replace('_', ' ')}{n}{100 * n / states['typed']:.1f} %", page.text)
    warning, note = page.text.index("Warning:"), page.text.index("Note:")
    assert warning < note, "warnings come first"
    assert "unlike" in text
    assert "Look at some cells." in text
    assert "<unlike>" not in text
    for said in ("organ: ovary", "model: Fused (gate)", "0.4 µm per px (given)", "gate 0123456789ab", "torch 2.9"):
        assert said in page.text
    assert page.text.rstrip().endswith("These are research results. They are not for diagnosis.")


def pictures(folder: Path) -> list[np.ndarray]:
    text = (folder / "summary.html").read_text()
    found = re.findall(r"data:image/png;base64,([^\"]+)", text)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


def test_map_has_the_colours_of_the_classes(run: tuple[Path, pd.DataFrame]) -> None:
    folder, table = run
    classes, confidence, bars = pictures(folder)
    assert classes.shape == confidence.shape
    colours = Run.read(folder, SHEET).colours()
    for name in {*table["class"]} - {""}:
        wanted = [int(colours[name][at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(classes.astype(int) - wanted).max(axis=2) <= 2).sum() > 20, name
    assert bars.shape[1] > bars.shape[0]


def test_frame_holds_the_cells_and_the_picture_lies_under_them(run: tuple[Path, pd.DataFrame]) -> None:
    folder, table = run
    cells = table[table["status"] != "left_out"]
    view = out_summary_maps.view_of(cells, folder / "he.ome.zarr")
    left, right, top, bottom = view.frame
    assert left < cells["x_um"].min() < cells["x_um"].max() < right
    assert top < cells["y_um"].min() < cells["y_um"].max() < bottom
    x0, x1, y0, y1 = view.extent
    assert x0 <= left < right <= x1
    assert y0 <= top < bottom <= y1
    height, width = view.picture.shape[:2]
    dark = 255.0 - view.picture.mean(axis=2)
    for _, cell in cells.iloc[::9].iterrows():
        row, column = (cell["y_um"] - y0) / (y1 - y0) * height, (cell["x_um"] - x0) / (x1 - x0) * width
        assert dark[int(row), int(column)] > dark.mean() * 1.3


@pytest.mark.parametrize("n", [1, 2])
def test_one_cell_has_a_map_too(tmp_path: Path, n: int) -> None:
    write_tables(tmp_path, table_of(n, left_out=0))
    store = write_slide(tmp_path, np.empty((0, 2)))
    write_outputs(tmp_path, ["summary"], store=store, classes=SHEET)
    assert len(pictures(tmp_path)) == 3


def test_many_cells_are_thinned_and_it_is_told(run: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("out_summary_maps", "out_summary"):
        monkeypatch.setattr(f"nuclass.apply.{module}.MOST_DRAWN", 10)
    write_outputs(run[0], ["summary"], store=run[0] / "he.ome.zarr", classes=SHEET)
    assert "The maps show 10 of 57 cells, chosen at random." in (run[0] / "summary.html").read_text()
    monkeypatch.undo()
    write_outputs(run[0], ["summary"], store=run[0] / "he.ome.zarr", classes=SHEET)
    assert "chosen at random" not in (run[0] / "summary.html").read_text()


def test_long_names_and_no_organ(local_run: tuple[Path, pd.DataFrame]) -> None:
    text = (local_run[0] / "summary.html").read_text()
    assert '<h1 class="long">a slide #1 of &quot;long&quot; name' in text
    assert "organ: not known · model: Local" in text


browsed = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: install the package chromium")


def text_of(page: Any, name: str) -> str:
    return str(page.run(f"document.getElementById({name!r}).textContent"))


@browsed
def test_page_offers_what_is_known_alone(
    run: tuple[Path, pd.DataFrame], local_run: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    modes = "[...document.getElementById('mode').options].filter((o) => !o.hidden).map((o) => o.value)"
    with chromium(tmp_path) as page:
        page.size(1400, 900)
        page.open((run[0] / "explorer/index.html").as_uri())
        page.wait(READY)
        assert page.run(modes) == ["prediction", "confidence", "gate"]
        assert page.run("document.getElementById('verdict-section').hidden")
        assert text_of(page, "count") == "57 of 57 predicted cells drawn"
        assert text_of(page, "unplaced") == "Not shown: 3 cells that were left out (see predictions.csv)."
        assert "Uncertain" in text_of(page, "classes")
        row = run[1][run[1]["status"] == "abstained"].iloc[0]
        page.run(f"document.getElementById('find').value = {row['cell_id']!r}")
        page.run("document.querySelector('#find-form button').click()")
        page.wait(f"document.getElementById('cell-title').textContent === 'Cell {row['cell_id']}'")
        facts = text_of(page, "cell-facts")
        assert "Classuncertain" in facts
        assert "Label" not in facts
        assert row["prediction"].replace("_", " ") in text_of(page, "cell-models")
        assert f"g = {row['gate']:.3f}" in text_of(page, "cell-gate")
        page.wait("document.getElementById('status').textContent.startsWith('Cell')")
        assert f"prediction {row['prediction'].replace('_', ' ')}" in text_of(page, "status")
        assert page.problems == []
        page.open((local_run[0] / "explorer/index.html").as_uri())
        page.wait(READY)
        assert page.run(modes) == ["prediction", "confidence"]
        page.press("n")
        page.wait("!document.getElementById('cell-body').hidden")
        assert page.run("document.getElementById('cell-gate-section').hidden")
        assert text_of(page, "cell-bars-title") == "Probabilities of the local model"
        assert page.problems == []


@browsed
def test_summary_fits_a_page(run: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    import pypdf

    with chromium(tmp_path) as page:
        page.open((run[0] / "summary.html").as_uri())
        page.wait("document.readyState === 'complete'")
        made = page.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    pdf = pypdf.PdfReader(BytesIO(base64.b64decode(made["data"])))
    assert len(pdf.pages) == 1


def test_maps_of_a_tall_slide_are_as_high_as_the_page_allows(tmp_path: Path) -> None:
    table = table_of(150, left_out=0)
    tall = (table["x_he"] < 60).to_numpy()
    write_tables(tmp_path, table[tall].reset_index(drop=True))
    store = write_slide(tmp_path, table.loc[tall, ["x_he", "y_he"]].to_numpy())
    write_outputs(tmp_path, ["summary"], store=store, classes=SHEET)
    widths = [float(w) for w in re.findall(r'style="width:([\d.]+)mm"', (tmp_path / "summary.html").read_text())]
    for width, shown in zip(widths, pictures(tmp_path), strict=True):
        height = width * shown.shape[0] / shown.shape[1]
        assert width <= 90.5
        assert height <= 101.5
    assert widths[0] < 60
