"""The explorer in a real browser: what is drawn, what a click shows, what filters leave."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from browser import CHROMIUM, Page, chromium
from explorer_example import CLASSES, HEIGHT, MAPPED, SHEET, WIDTH, WINDOWS, wave, write_site
from nuclass.core.names import MODELS
from nuclass.explorer.cells import write_cells
from nuclass.figures.style import Classes

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: install the package chromium to test the explorer's page"
)
READY = "typeof NuClass !== 'undefined' && NuClass.app?.ready"
VERDICTS = ["#009E73", "#D55E00", "#8C8C8C"]
CELLS = 433
"""Cells of slide ovary_h, of which 300 have a prediction."""
Site = tuple[Path, dict[str, pd.DataFrame]]
PAUSE = "new Promise((go) => setTimeout(go, 150))"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("explorer")
    tables = write_site(folder)
    pd.DataFrame({"cell_id": [f"c{i}" for i in range(CELLS)]}).to_parquet(folder / "cells.parquet")
    write_cells(
        "ovary_h",
        {model: folder / f"predictions/{model}/ovary_h.parquet" for model in MODELS},
        folder / "site/slides/ovary_h/cells",
        classes=SHEET,
        chosen=folder / "cells.csv",
        maps=folder / "maps.npz",
        cells=folder / "cells.parquet",
    )
    return folder / "site", tables


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site[0]))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        page.size(1400, 900)
        yield page


@pytest.fixture
def page(browser: Page, server: str) -> Iterator[Page]:
    """The page on its first slide, from a web server; at the end it must have complained of nothing."""
    browser.open(f"{server}/index.html")
    browser.wait(READY)
    # On a busy machine a press and its release lie further apart than a quick click of a hand.
    browser.run("NuClass.app.view.osd.innerTracker.clickTimeThreshold = 1e5")
    yield browser
    browser.run("1")
    assert browser.problems == []


@pytest.fixture(scope="module")
def table(site: Site) -> pd.DataFrame:
    return site[1]["ovary_h"].set_index("cell_id")


def cell_of(page: Page, cell_id: str) -> int:
    return int(page.run(f"NuClass.app.slide.find({json.dumps(cell_id)})"))


def set_value(page: Page, name: str, value: object, event: str = "change") -> None:
    page.run(
        f"{{const e = document.getElementById({name!r}); e.value = {value!r}; e.dispatchEvent(new Event({event!r}))}}"
    )


def tick(page: Page, group: str, value: int) -> None:
    page.run(f"document.querySelector('#{group} input[value=\"{value}\"]').click()")


def text_of(name: str) -> str:
    return f"document.getElementById({name!r}).textContent"


def choose_slide(page: Page, name: str) -> None:
    """Choose another slide and wait until it is open."""
    set_value(page, "slide", name)
    page.wait(f"{text_of('status')}.startsWith('Slide {name}:')")


def hold(page: Page, owner: str, method: str, when: str = "true") -> None:
    """Hold a method's calls (of whose arguments ``args`` the condition is true) back until :func:`let_go`."""
    page.run(
        f"""{{const owner = {owner}, kept = owner.{method}.bind(owner); window.held = [];
        owner.{method} = async (...args) => {{
            if ({when}) await new Promise((go) => window.held.push(go));
            return kept(...args);
        }}}}"""
    )


def let_go(page: Page) -> None:
    """Let the calls that are held back go on, and give them time to do what they must not."""
    page.run(f"window.held.splice(0).forEach((go) => go()); {PAUSE}")


def settle(page: Page) -> None:
    """Wait until the view no longer moves."""
    springs = "['zoomSpring', 'centerSpringX', 'centerSpringY'].every(s => v[s].isAtTargetValue())"
    page.wait(f"(() => {{const v = NuClass.app.view.osd.viewport; return {springs}}})()")
    page.wait(
        "!NuClass.app.view.osd.isAnimating?.() && !NuClass.app.view.osd.viewport.zoomSpring.isAtTargetValue() === false"
    )


def screen(page: Page, cell: int) -> tuple[float, float]:
    """Where a cell lies in the window, CSS px."""
    x, y = page.run(
        f"""{{const v = NuClass.app.view, p = v.place(), b = v.element.getBoundingClientRect();
        [b.x + (v.slide.x[{cell}] - p.x) * p.scale, b.y + (v.slide.y[{cell}] - p.y) * p.scale]}}"""
    )
    return x, y


def colour_at(page: Page, cell: int) -> list[int]:
    """Draw the points and return the colour of the middle of one, RGBA."""
    return list(
        page.run(
            f"""{{const v = NuClass.app.view; v.opacity = 1; v.draw();
            const p = v.place(), x = Math.floor((v.slide.x[{cell}] - p.x) * p.scale);
            const y = Math.floor((v.slide.y[{cell}] - p.y) * p.scale), c = v.canvas, out = new Uint8Array(4);
            if (v.points.gl) v.points.gl.readPixels(x, c.height - 1 - y, 1, 1, 6408, 5121, out);
            else out.set(c.getContext('2d').getImageData(x, y, 1, 1).data);
            Array.from(out)}}"""
        )
    )


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])


@pytest.mark.parametrize("how", ["file", "http"])
def test_opens_without_a_complaint_and_asks_only_its_own_files(
    how: str, browser: Page, server: str, site: Site
) -> None:
    base = server if how == "http" else site[0].as_uri()
    browser.open(f"{base}/index.html")
    browser.wait(READY)
    browser.wait("NuClass.app.view.osd.world.getItemAt(0).getFullyLoaded()")
    cell = cell_of(browser, "ovary_h-0040")
    browser.run("document.getElementById('find').value = 'ovary_h-0040'")
    browser.run("document.querySelector('#find-form button').click()")
    browser.wait("document.getElementById('cell-title').textContent === 'Cell ovary_h-0040'")
    browser.wait("document.getElementById('cell-local').turn > 0")
    assert browser.run("NuClass.app.cell") == cell
    assert browser.run("NuClass.app.drawn") == 300
    assert browser.run("document.getElementById('count').textContent") == "300 of 300 predicted cells drawn"
    browser.wait("location.hash === '#slide=ovary_h&cell=ovary_h-0040'")
    assert browser.problems == []
    assert any(".jpeg" in address for address in browser.requested)
    assert [a for a in browser.requested if not a.startswith((base, "data:", "about:"))] == []


def test_without_a_graphics_processor_pixels_are_written(browser: Page, server: str) -> None:
    browser.open(f"{server}/index.html")
    browser.wait(READY)
    assert browser.run("NuClass.app.view.points.kind") == "canvas"


def test_address_leads_to_slide_and_cell(browser: Page, server: str) -> None:
    browser.open(f"{server}/index.html#slide=patch_h&cell=patch_h-0017")
    browser.wait(READY)
    assert browser.run("document.getElementById('slide').value") == "patch_h"
    assert browser.run("document.getElementById('cell-title').textContent") == "Cell patch_h-0017"


@pytest.mark.parametrize("kind", ["WebGL", "canvas"])
def test_points_have_the_colours_of_the_mode(browser: Page, server: str, table: pd.DataFrame, kind: str) -> None:
    browser.open(f"{server}/index.html#draw={kind.lower()}")
    browser.wait(READY)
    assert browser.run("NuClass.app.view.points.kind") == kind
    sheet = Classes.read(SHEET)
    viridis = [rgb(c) for c in ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")]
    branch = [rgb(c) for c in ("#E69F00", "#d9d9d9", "#0072B2")]

    def along(stops: list[np.ndarray], value: float) -> np.ndarray:
        place = np.linspace(0, 1, len(stops))
        return np.array([np.interp(value, place, [stop[c] for stop in stops]) for c in range(3)])

    # The first has no label, the seventh one that the model does not know.
    for name in [table.index[i] for i in (0, 6, 20, 90, 201)]:
        cell, row = cell_of(browser, name), table.loc[name]
        right = 2 if row["label"] not in CLASSES else int(row["label"] != row["prediction"])
        expected = {
            "prediction": rgb(sheet.colour(row["prediction"])),
            "label": rgb(sheet.colour(row["label"])),
            "verdict": rgb(VERDICTS[right]),
            "confidence": along(viridis, row["confidence"]),
            "gate": along(branch, row["gate"]),
        }
        for mode, colour in expected.items():
            set_value(browser, "mode", mode)
            found = colour_at(browser, cell)
            assert found[3] > 250, (mode, name)
            assert np.abs(np.array(found[:3]) - colour).max() <= 3, (mode, name)
    browser.run("document.getElementById('none').click()")
    assert colour_at(browser, cell)[3] == 0, "a cell that is filtered out is not drawn"
    assert browser.problems == []


def test_zoom_and_pan(page: Page) -> None:
    cell = cell_of(page, "ovary_h-0100")
    zoom = "NuClass.app.view.osd.viewport.getZoom()"
    centre = "NuClass.app.view.osd.viewport.getCenter().x"
    start, before = page.run(zoom), page.run("NuClass.app.view.frames")
    page.wheel(700, 450, -240)
    page.wait(f"{zoom} > {start} * 1.1")
    page.run("document.getElementById('zoom-in').click()")
    page.wait(f"{zoom} > {start} * 1.7")
    settle(page)
    place = page.run(centre)
    page.drag((700, 450), (600, 450))
    page.wait(f"{centre} > {place} + 0.01")
    settle(page)
    assert page.run("NuClass.app.view.frames") >= before + 3
    # The layer moves with the picture: a cell lies where OpenSeadragon says its pixel lies.
    x, y = page.run(
        f"""{{const v = NuClass.app.view, b = v.element.getBoundingClientRect();
        const at = v.osd.world.getItemAt(0).imageToViewerElementCoordinates(
            new OpenSeadragon.Point(v.slide.x[{cell}], v.slide.y[{cell}]));
        [b.x + at.x, b.y + at.y]}}"""
    )
    assert screen(page, cell) == pytest.approx((x, y), abs=0.6)
    page.run("document.getElementById('home').click()")
    page.wait(f"Math.abs({zoom} - {start}) < 1e-6 * {start}")


def test_filters_leave_the_cells_they_say(page: Page, table: pd.DataFrame) -> None:
    known = table["label"].isin(CLASSES)
    right = known & (table["label"] == table["prediction"])

    def drawn() -> int:
        number = int(page.run("NuClass.app.drawn"))
        assert page.run("NuClass.app.shown.reduce((a, b) => a + b, 0)") == number
        assert page.run("document.getElementById('count').textContent").startswith(f"{number} of 300")
        return number

    tick(page, "verdicts", 0)
    assert drawn() == (~right).sum()
    tick(page, "verdicts", 2)
    assert drawn() == (known & ~right).sum()
    tick(page, "verdicts", 0)
    tick(page, "verdicts", 2)
    names = page.run("NuClass.app.slide.classes.map(c => c.name)")
    t_cell = names.index("T_Cell")
    tick(page, "classes", t_cell)
    assert drawn() == (table["prediction"] != "T_Cell").sum()
    set_value(page, "by", "label")
    assert drawn() == 300, "another list of classes starts with all of them"
    tick(page, "classes", t_cell)
    assert drawn() == (table["label"] != "T_Cell").sum()
    page.run("document.getElementById('none').click()")
    tick(page, "classes", 255)
    assert drawn() == (table["label"] == "").sum() == 6
    page.run("document.getElementById('all').click()")
    set_value(page, "least", 60, "input")
    share = (table["confidence"].to_numpy() * 255).round()
    assert drawn() == (share >= 153).sum()
    set_value(page, "most", 80, "input")
    assert drawn() == ((share >= 153) & (share <= 204)).sum()
    # A cell that is not drawn is not there for a click, nor on the canvas.
    hidden = next(name for name in table.index[20:] if table.loc[name, "confidence"] > 0.9)
    cell = cell_of(page, hidden)
    assert colour_at(page, cell)[3] == 0
    page.run("{const view = NuClass.app.view, pick = view.onPick; view.onPick = (cell) => pick(view.picked = cell)}")
    page.click(*screen(page, cell))
    page.wait("NuClass.app.view.picked === -1")
    assert page.run("NuClass.app.cell") == -1


def test_click_shows_the_cell_under_the_pointer(page: Page, table: pd.DataFrame) -> None:
    for name in ("ovary_h-0000", "ovary_h-0006", "ovary_h-0123", "ovary_h-0250"):
        row = table.loc[name]
        page.click(*screen(page, cell_of(page, name)))
        page.wait(f"document.getElementById('cell-title').textContent === 'Cell {name}'")
        bars = page.run(
            "[...document.querySelectorAll('#cell-bars li')].map(e => [e.dataset.class, Number(e.dataset.value), "
            "e.querySelector('.number').textContent])"
        )
        values = {key: value for key, value, _ in bars}
        assert values == {c: pytest.approx(float(np.float32(row[f"prob_{c}"])), abs=1e-12) for c in CLASSES}
        assert [text for _, value, text in bars] == [f"{value:.3f}" for _, value, _ in bars]
        assert [key for key, _, _ in bars] == sorted(values, key=lambda key: -values[key])
        facts = page.run("document.getElementById('cell-facts').innerText")
        assert row["prediction"].replace("_", " ") in facts
        assert (row["label"].replace("_", " ") or "no label") in facts
        assert f"g = {row['gate']:.3f}" in page.run("document.getElementById('cell-gate').textContent")
        fused = page.run("document.querySelector('#cell-models tr.gate .number').textContent")
        assert fused == f"{row['confidence']:.3f}"
        assert "No map was computed for this cell" in page.run("document.getElementById('cell-maps').textContent")
        page.wait(f"{text_of('status')}.startsWith('Cell {name}.')")
    page.press("Escape")
    page.wait("document.getElementById('cell-body').hidden && NuClass.app.cell === -1")


@pytest.mark.parametrize("name", ["ovary_h-0055", "ovary_h-0140"])
def test_windows_are_cut_where_the_workflow_cuts_them(page: Page, table: pd.DataFrame, name: str) -> None:
    page.run(f"document.getElementById('find').value = {name!r}")
    page.run("document.querySelector('#find-form button').click()")
    row = table.loc[name]
    page.wait(f"document.getElementById('cell-title').textContent === 'Cell {name}'")
    for role, side in WINDOWS.items():
        read = f"""(() => {{const c = document.getElementById('cell-{role}'), g = c.getContext('2d');
            return [[.2, .3], [.8, .3], [.3, .9]].map(([x, y]) => [x, y,
            ...g.getImageData(Math.floor(x * c.width), Math.floor(y * c.height), 1, 1).data])}})()"""
        page.wait(f"{read}.every(p => p[5] === 255)")
        x0, y0 = (np.floor(row[k] - side / 2 + 0.5) for k in ("x_px", "y_px"))
        for x, y, red, green, *_ in page.run(read):
            at = x0 + x * side, y0 + y * side
            inside = 0 <= at[0] < WIDTH and 0 <= at[1] < HEIGHT
            wanted = [int(wave(np.array(int(v)))) for v in at] if inside else [255, 255]
            assert [red, green] == pytest.approx(wanted, abs=9), (role, x, y)


def test_maps_are_shown_where_they_were_computed(page: Page, table: pd.DataFrame) -> None:
    assert page.run("document.querySelectorAll('.mark.has-map').length") == len(MAPPED)
    buttons = page.run("[...document.querySelectorAll('#map-links button')].map(e => Number(e.dataset.cell))")
    assert sorted(buttons) == sorted(cell_of(page, table.index[i]) for i in MAPPED)
    page.run("document.querySelector('#map-links button').click()")
    page.wait("document.querySelectorAll('#cell-maps img').length === 4")
    page.wait("[...document.querySelectorAll('#cell-maps img')].every(e => e.naturalWidth > 0)")
    assert page.run("[...document.querySelectorAll('#cell-maps img')].map(e => e.naturalWidth)") == [64, 64, 256, 256]
    page.run("document.getElementById('only-maps').click()")
    assert page.run("NuClass.app.drawn") == len(MAPPED)


def test_slide_without_a_picture_has_points_only(page: Page) -> None:
    page.wait("NuClass.app.view.osd.world.getItemAt(0).getFullyLoaded()")
    page.requested.clear()
    choose_slide(page, "patch_h")
    assert page.run("!document.getElementById('no-picture').hidden")
    cell = cell_of(page, "patch_h-0031")
    page.wait("NuClass.app.view.osd.world.getItemCount() === 1")
    assert colour_at(page, cell)[3] > 250
    page.click(*screen(page, cell))
    page.wait("document.getElementById('cell-title').textContent === 'Cell patch_h-0031'")
    assert page.run("document.getElementById('cell-windows').hidden")
    assert page.run("!document.getElementById('cell-no-picture').hidden")
    assert page.run("document.getElementById('cell-problem').hidden")
    assert not any(".jpeg" in address or "tiles.js" in address for address in page.requested)


def test_keys_step_through_the_cells_that_are_drawn(page: Page) -> None:
    page.press("p")
    page.wait("NuClass.app.cell >= 0")
    assert page.run("NuClass.app.cell") == 299, "without a chosen cell, the one before is the last"
    page.press("Escape")
    page.wait("NuClass.app.cell === -1")
    tick(page, "verdicts", 0)
    shown = page.run("Array.from(NuClass.app.shown.keys()).filter(i => NuClass.app.shown[i])")
    for key, cell in (("n", shown[0]), ("n", shown[1]), ("p", shown[0]), ("p", shown[-1])):
        page.press(key)
        page.wait(f"NuClass.app.cell === {cell}")
    page.run("document.getElementById('find').value = 'nothing'")
    page.run("document.querySelector('#find-form button').click()")
    page.wait("!document.getElementById('not-found').hidden")
    # What can be worked by hand has a name for those who do not see it.
    nameless = page.run(
        "[...document.querySelectorAll('button, input, select')].filter(e => !(e.ariaLabel || e.textContent.trim() || "
        "(e.labels && [...e.labels].some(l => l.textContent.trim())))).map(e => e.id)"
    )
    assert nameless == []


def test_the_chosen_cell_comes_to_the_middle(page: Page) -> None:
    """From afar, where the view comes nearer on the way, and from cell to cell."""
    page.run("(({viewport: v}) => void v.zoomTo(v.imageToViewportZoom(0.2), null, true))(NuClass.app.view.osd)")
    settle(page)
    middle = "(({viewport: v}) => [v.getContainerSize().x / 2, v.getContainerSize().y / 2])(NuClass.app.view.osd)"
    zoom = "NuClass.app.view.osd.viewport.getZoom(true)"
    before = page.run(zoom)
    for cell in range(2):
        page.press("n")
        page.wait(f"NuClass.app.cell === {cell}")
        settle(page)
        left, top = page.run("(({left, top}) => [left, top])(NuClass.app.view.osd.element.getBoundingClientRect())")
        x, y = page.run(middle)
        assert screen(page, cell) == pytest.approx((left + x, top + y), abs=2)
    assert page.run(zoom) > 1.2 * before


def test_picture_is_never_turned_or_mirrored(page: Page) -> None:
    turned = "(({viewport: v}) => [v.getFlip(), v.getRotation(), v.getRotation(true)])(NuClass.app.view.osd)"
    zoom = "NuClass.app.view.osd.viewport.getZoom()"
    home = page.run(zoom)
    page.run("NuClass.app.view.zoomBy(3); NuClass.app.view.osd.canvas.focus()")

    def press(key: str, modifiers: int = 0) -> None:
        facts: dict[str, Any] = {
            "key": key,
            "code": f"Key{key.upper()}" if key != "0" else "Digit0",
            "modifiers": modifiers,
        }
        code = ord(key.upper())
        page.call("Input.dispatchKeyEvent", type="keyDown", text=key, windowsVirtualKeyCode=code, **facts)
        page.call("Input.dispatchKeyEvent", type="keyUp", windowsVirtualKeyCode=code, **facts)

    shift = 8
    for key, modifiers in (("f", 0), ("r", 0), ("F", shift), ("R", shift), ("r", 0)):
        press(key, modifiers)
        assert page.run(turned) == [False, 0, 0], key
    # The slide had the focus, and its other keys work.
    press("0")
    page.wait(f"Math.abs({zoom} - {home}) < 1e-6 * {home}")
    assert page.run(turned) == [False, 0, 0]


def test_page_says_which_cells_it_does_not_show(page: Page) -> None:
    why = "of the slide without a prediction (no label, or failed quality control)."
    of_training = why.replace(
        "or failed quality control", "failed quality control, or in the training part or its buffer"
    )
    assert page.run(text_of("count")) == "300 of 300 predicted cells drawn"
    assert page.run(text_of("unplaced")) == f"Not shown: {CELLS - 300} cells {why}"
    assert page.run("document.getElementById('unplaced').checkVisibility()")
    verdicts = page.run("[...document.querySelectorAll('#verdicts .name')].map((e) => e.textContent)")
    assert verdicts == ["Right", "Wrong", "Not judged: label unknown to the model"]
    for change, expected in (
        ("{unpredicted: 1}", f"Not shown: 1 cell {why}"),
        ("{unpredicted: 12345, unplaced: 2}", f"Not shown: 12,345 cells {why} 2 predicted cells have no place"),
        ("{unpredicted: 2, about: {role: 'train'}}", f"Not shown: 2 cells {of_training}"),
        ("{unpredicted: 0, unplaced: 0}", ""),
    ):
        page.run(f"NuClass.app.controls.setSlide(Object.assign(NuClass.app.slide, {change}))")
        assert page.run(text_of("unplaced")).startswith(expected)
        assert page.run("document.getElementById('unplaced').hidden") == (expected == "")
    # Of the other slide the number was not written.
    choose_slide(page, "patch_h")
    assert page.run(text_of("unplaced")) == f"Not shown: cells {why}"


@pytest.mark.parametrize("name", ["ovary_h/cells/details/0.js", "patch_h/cells/points.js"])
def test_missing_file_is_told_until_it_is_there(browser: Page, server: str, site: Site, name: str) -> None:
    missing = site[0] / "slides" / name
    kept = missing.read_bytes()
    browser.open(f"{server}/index.html")
    browser.wait(READY)
    missing.unlink()
    try:
        if "details" in name:
            browser.press("n")
        else:
            set_value(browser, "slide", "patch_h")
        browser.wait("!document.getElementById('problem').hidden")
        assert f"{name} cannot be read" in browser.run(text_of("problem"))
        assert browser.run("['loading', 'cell-body'].every((id) => document.getElementById(id).hidden)")
        # The slide is the one before, and the list says so.
        assert browser.run("[NuClass.app.slide.name, document.getElementById('slide').value]") == ["ovary_h"] * 2
    finally:
        missing.write_bytes(kept)
    if "details" in name:
        browser.press("n")
        browser.wait(f"{text_of('status')}.startsWith('Cell')")
    else:
        choose_slide(browser, "patch_h")
    assert browser.run("document.getElementById('problem').hidden && document.getElementById('loading').hidden")
