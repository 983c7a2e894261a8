"""The report, rendered from files of the right names, opened in a browser: it holds every figure and table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from browser import CHROMIUM, chromium
from test_workflow import snakemake

ROOT = Path(__file__).parents[1]
LINKED = ("rules", "scripts", "src", "workflow", "docs", "envs")
GOALS = ("evaluation", "figures", "tables", "results/provenance/run.json", "results/provenance/methods.html")
OF_SNAKEMAKE = "cdn.tailwindcss.com should not be used in production"
"""What Snakemake's own page warns of."""


def made_up(path: Path) -> None:
    """Write a small file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".jpg", ".png"):
        Image.new("RGB", (60, 40), "#0072B2").save(path)
    elif path.suffix in (".zarr", "") and "." not in path.stem:
        path.mkdir(exist_ok=True)
    else:
        path.write_text("a,b\n1,2\n", encoding="utf-8")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The report of a study whose files are all made up, and the files of the study."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("config", "resources"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("bundles", "truth"))
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    done = snakemake("--cores", "1", "--summary", *GOALS, folder=folder)
    assert done.returncode == 0, done.stderr
    files = [line.split("\t")[0] for line in done.stdout.splitlines()[1:] if "\t" in line]
    for name in files:
        made_up(folder / name)
    done = snakemake("--cores", "1", "--report", "report.html", "--", *GOALS, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "report.html", files


@pytest.mark.workflow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_it_opens_and_holds_every_figure_and_table(report: tuple[Path, list[str]], tmp_path: Path) -> None:
    file, files = report
    with chromium(tmp_path) as page:
        page.size(1300, 900)
        open_anew(page, file)
        shown: dict[str, dict[str, Any]] = json.loads(page.run("JSON.stringify(results)"))
        figures = {name for name in files if name.startswith("results/figures/") and name.endswith(".jpg")}
        tables = {name for name in files if name.startswith("results/tables/") and name.endswith(".csv")}
        assert {"results/figures/pipeline.jpg", "results/figures/dataset_composition.jpg"} <= figures
        assert figures | tables <= set(shown)
        assert {"results/provenance/run.json", "results/provenance/methods.html"} <= set(shown)
        for name, entry in shown.items():
            assert entry["data_uri"].startswith("data:"), name
            assert len(entry["caption"]) > 40, f"{name} has no caption"
        # No picture of 300 dpi goes into a file that is mailed.
        assert not [name for name in shown if name.endswith(".png")]
        categories: dict[str, dict[str, list[str]]] = json.loads(page.run("JSON.stringify(categories)"))
        filed = {name: category for category, parts in categories.items() for names in parts.values() for name in names}
        assert filed["results/figures/pipeline.jpg"] == "Methods"
        assert "Other" not in categories
        problems = []
        for category, parts in [*categories.items(), ("Workflow", {})]:
            open_anew(page, file)
            click(page, category)
            wanted = [next(iter(shown[name]["labels"].values())) for names in parts.values() for name in names]
            for label in wanted:
                page.wait(f"document.body.innerText.includes({json.dumps(label)})")
            problems += [text for text in page.problems if OF_SNAKEMAKE not in text]
            problems += [address for address in page.requested if not address.startswith(("file:", "data:", "blob:"))]
        assert problems == []


def open_anew(page: Any, file: Path) -> None:
    """Open the first page of the report, and wait for its text."""
    page.open(file.as_uri())
    page.wait("document.readyState == 'complete' && document.body.innerText.includes('NuClass')")


def click(page: Any, text: str) -> None:
    """Click what bears this text in the menu."""
    page.wait(
        "(() => { const found = [...document.querySelectorAll('a, button')].find("
        f"part => part.innerText.trim() == {json.dumps(text)}); if (found) found.click(); return !!found; }})()"
    )
