"""How fast the explorer opens and moves with many cells, in a headless Chromium, and how fast its files are written."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from browser import Page, chromium  # noqa: E402
from nuclass.explorer.cells import write_cells  # noqa: E402
from nuclass.explorer.page import write_page  # noqa: E402
from nuclass.explorer.tiles import write_tiles  # noqa: E402
from nuclass.slides.store import SlideStore  # noqa: E402

SHEET = REPOSITORY / "resources/classes.tsv"
READY = "typeof NuClass !== 'undefined' && NuClass.app?.ready"
# From the start of the page's load to its first frame with all cells.
LOADED = (
    """new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now()))))"""
)
FRAMES = """(async () => {
  const view = NuClass.app.view, times = [];
  for (let i = 0; i < 9; i++) {
    const start = performance.now();
    view.draw(STEP);
    view.points.finish();
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[4];
})()"""
FILTER = """(() => { const start = performance.now();
  NuClass.app.controls.filter(NuClass.app.shown); NuClass.app.view.setShown(NuClass.app.shown);
  return performance.now() - start; })()"""
PICK = """(() => { const v = NuClass.app.view, start = performance.now();
  for (let i = 0; i < 1000; i++) v.grid.nearest(v.slide.x[i * 7], v.slide.y[i * 7], 20, v.shown);
  return (performance.now() - start) / 1000; })()"""


def simulate(path: Path, cells: int, shape: tuple[int, int]) -> dict[str, Path]:
    """Write prediction tables of a simulated slide: cells in clumps, probabilities of 16 classes."""
    rng = np.random.default_rng(1)
    names = pd.read_csv(SHEET, sep="\t")["class"].tolist()
    height, width = shape
    centre = rng.uniform(0, 1, (cells // 200 + 1, 2))[rng.integers(0, cells // 200 + 1, cells)]
    xy = np.clip(centre + rng.normal(0, 0.02, (cells, 2)), 0.001, 0.999) * [width, height]
    tables = {}
    for model in ("local", "global", "gate"):
        logits = rng.normal(0, 2, (cells, len(names)))
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        best = probs.argmax(1)
        table = pd.DataFrame({"cell_id": [f"c{i:07d}-1" for i in range(cells)], "x_px": xy[:, 0], "y_px": xy[:, 1]})
        label = np.where(rng.random(cells) < 0.8, best, rng.integers(0, len(names), cells))
        table["label"], table["prediction"] = np.array(names)[label], np.array(names)[best]
        table["confidence"] = probs.max(1)
        if model == "gate":
            table["gate"] = rng.uniform(0, 1, cells)
        table = pd.concat([table, pd.DataFrame(probs, columns=[f"prob_{name}" for name in names])], axis=1)
        tables[model] = path / f"{model}.parquet"
        table.to_parquet(tables[model])
    return tables


def measure(page: Page, address: str, cells: int, repeats: int) -> dict[str, float | str]:
    """Open the page a few times, then move, filter and point."""
    loads = []
    for _ in range(repeats):
        page.open(address)
        page.wait(READY, 60)
        assert page.run("NuClass.app.drawn") == cells
        loads.append(page.run(f"(NuClass.app.view.draw(), {LOADED})") / 1000)
    return {
        "drawn by": page.run("NuClass.app.view.points.kind"),
        "first load, s": round(min(loads), 2),
        "median load, s": round(float(np.median(loads)), 2),
        "all cells, ms": round(page.run(FRAMES.replace("STEP", "1")), 1),
        "a frame while moving, ms": round(page.run(FRAMES.replace("STEP", "view.step")), 1),
        "moving: every nth": page.run("NuClass.app.view.step"),
        "a filter, ms": round(page.run(FILTER), 1),
        "a pick, ms": round(page.run(PICK), 4),
        "problems": "; ".join(page.problems),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=300_000)
    parser.add_argument("--store", type=Path, help="a slide store, for tiles; without it points only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--screenshot", type=Path, help="where a picture of the page goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        site = root / "site"
        shape = (40_000, 40_000)
        report: dict[str, object] = {"cells": options.cells}
        if options.store:
            start = time.perf_counter()
            write_tiles("s", options.store, site / "slides/s/tiles", quality=85)
            seconds = time.perf_counter() - start
            shape = SlideStore(options.store).shape
            size = sum(path.stat().st_size for path in (site / "slides/s/tiles").rglob("*.jpeg"))
            report["tiles"] = f"{shape[1]} x {shape[0]} px, {seconds:.1f} s, {size / 1e6:.0f} MB"
        tables = simulate(root, options.cells, shape)
        start = time.perf_counter()
        write_cells("s", tables, site / "slides/s/cells", classes=SHEET)
        report["write cells, s"] = round(time.perf_counter() - start, 1)
        files = site / "slides/s/cells"
        report["points.js, MB"] = round((files / "points.js").stat().st_size / 1e6, 1)
        report["cells in all, MB"] = round(sum(p.stat().st_size for p in files.rglob("*.js")) / 1e6, 1)
        slides = [{"name": "s", "organ": "simulated", "role": "cohort", "picture": bool(options.store)}]
        write_page(
            REPOSITORY / "resources/explorer",
            site / "index.html",
            site / "assets",
            site / "study.js",
            name="benchmark",
            slides=slides,
            windows={"local": 224, "global": 1024},
            mpp=0.25,
            synthetic=True,
        )
        with chromium(root / "profile") as page:
            page.size(1440, 900)
            for kind in ("", "webgl"):
                address = f"{(site / 'index.html').as_uri()}#draw={kind}"
                report[kind or "by itself"] = measure(page, address, options.cells, options.repeats)
                if options.screenshot and not kind:
                    page.screenshot(options.screenshot)
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
