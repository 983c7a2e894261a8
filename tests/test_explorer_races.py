"""The explorer in a real browser: what is slow does not undo what was chosen later."""

from __future__ import annotations

import pytest

from browser import CHROMIUM, Page
from test_explorer_page import browser, choose_slide, hold, let_go, page, server, set_value, site, text_of

__all__ = ["browser", "page", "server", "site"]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: install the package chromium to test the explorer's page"
)


def test_cell_that_was_let_go_does_not_come_back(page: Page) -> None:
    hold(page, "NuClass.app.slide", "details")
    page.press("n")
    page.wait("window.held.length === 1")
    page.press("Escape")
    page.wait("NuClass.app.cell === -1")
    let_go(page)
    assert page.run("document.getElementById('cell-body').hidden")
    assert page.run("location.hash") == "#slide=ovary_h"
    assert not page.run(text_of("status")).startswith("Cell")


def test_slow_windows_do_not_undo_a_later_choice(page: Page) -> None:
    hold(page, "NuClass.windows", "draw", "args[1] === NuClass.app.slide && args[2] === 0")
    page.press("n")
    page.wait("window.held.length === 2")
    page.press("n")
    name = page.run("NuClass.app.slide.details(1).then((details) => details.id)")
    page.wait(f"location.hash === '#slide=ovary_h&cell={name}'")
    let_go(page)
    assert page.run("location.hash") == f"#slide=ovary_h&cell={name}"
    assert page.run(text_of("status")).startswith(f"Cell {name}.")


def test_slow_slide_does_not_replace_a_later_choice(page: Page) -> None:
    hold(page, "NuClass.Slide", "load", "args[0].name === 'patch_h'")
    set_value(page, "slide", "patch_h")
    page.wait("window.held.length === 1")
    assert page.run("!document.getElementById('loading').hidden")
    set_value(page, "slide", "ovary_h")
    page.wait(f"document.getElementById('loading').hidden && {text_of('status')}.startsWith('Slide ovary_h')")
    page.press("n")
    page.wait("location.hash.includes('cell=')")
    let_go(page)
    shown = page.run("[NuClass.app.slide.name, NuClass.app.view.slide.name, document.getElementById('slide').value]")
    assert shown == ["ovary_h"] * 3
    assert page.run("NuClass.app.cell") == 0
    assert page.run("document.getElementById('no-picture').hidden && document.getElementById('loading').hidden")


def test_cell_of_the_slide_before_is_not_shown_on_the_next(page: Page) -> None:
    hold(page, "NuClass.app.slide", "find")
    page.run("document.getElementById('find').value = 'ovary_h-0040'")
    page.run("document.querySelector('#find-form button').click()")
    page.wait("window.held.length === 1")
    choose_slide(page, "patch_h")
    let_go(page)
    assert page.run("[NuClass.app.cell, location.hash]") == [-1, "#slide=patch_h"]
    assert page.run("document.getElementById('cell-body').hidden")
