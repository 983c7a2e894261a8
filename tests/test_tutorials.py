"""The tutorials work as written: their commands run, in their order, on a small study."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from tutorial_pages import PAGES, REPOSITORY, blocks, commands_of, run_page

FIRST = "first_study"
SLIDES = ("ovary_1", "ovary_h")
MOST_NOT_RUN = 2


def small_models() -> dict[str, Any]:
    """Return the demo's models, smaller and trained for an epoch or two."""
    made: dict[str, Any] = yaml.safe_load((REPOSITORY / "config/models/demo.yaml").read_text(encoding="utf-8"))
    del made["ablations"], made["baselines"]
    context = made["context"]
    context["views"] = 1
    context["backbone"]["config"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    context["backbone"]["config"]["num_attention_heads"] = 2
    context["pretrain"]["samples_per_epoch"] = 200
    context["pretrain"]["trainer"]["max_epochs"] = 1
    made["local"]["backbone"]["input_px"] = 64
    made["local"]["trainer"]["max_epochs"] = 3
    made["global"]["trainer"]["max_epochs"] = 2
    made["gate"]["trainer"]["max_epochs"] = 5
    return made


def copy_of_repository(folder: Path) -> None:
    """Copy what is under version control, or would be, and cut the demo down to two slides and small models."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        source = REPOSITORY / name
        if source.is_file() and not source.is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    sheet = folder / "config/slides.tsv"
    rows = sheet.read_text(encoding="utf-8").splitlines(keepends=True)
    sheet.write_text("".join(row for row in rows if row.split("\t")[0] in ("slide", *SLIDES)), encoding="utf-8")
    models = folder / "config/models/demo.yaml"
    models.write_text(yaml.safe_dump(small_models(), sort_keys=False), encoding="utf-8")
    config = folder / "config/config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("bootstrap: 1000", "bootstrap: 200"), encoding="utf-8")


@pytest.fixture(scope="session")
def first_study(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder after the first tutorial, made once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder, done = shared / "tutorials", shared / "tutorials.json"
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            copy_of_repository(folder)
            done.write_text(json.dumps(run_page(FIRST, folder)), encoding="utf-8")
    return folder


@pytest.fixture
def study(first_study: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of that folder for one other tutorial."""
    folder = tmp_path / "study"
    shutil.copytree(first_study, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
@pytest.mark.workflow
def test_first_study(first_study: Path) -> None:
    told = json.loads(Path(f"{first_study}.json").read_text(encoding="utf-8"))
    assert told[0].startswith("The study 'demo' is sound: 1 training slides (ovary_1)")
    assert "labelled" in told[2]
    assert "Epithelial_Malignant" in told[4]
    assert "oracle" in told[-1]
    assert (first_study / "results/models/gate/best.ckpt").is_file()


@pytest.mark.long
@pytest.mark.workflow
def test_own_he_slide(study: Path) -> None:
    run_page("own_he_slide", study)
    out = study / "results/mine/ovary_h"
    table = pd.read_parquet(out / "predictions.parquet")
    cells = json.loads((out / "predictions.geojson").read_text(encoding="utf-8"))["features"]
    assert len(table) > 500
    assert (table["status"] == "typed").any()
    assert len(cells) == (table["status"] != "left_out").sum()
    assert (study / "results/mine/ovary_h/summary.html").is_file()


@pytest.mark.long
@pytest.mark.workflow
def test_own_xenium_slide(study: Path) -> None:
    told = run_page("own_xenium_slide", study)
    assert "PASS: slide" in told[1]
    assert "2 training slides (ovary_1, mine_1)" in told[3]
    splits = pd.read_parquet(study / "results/splits/mine_1.parquet")
    assert {"train", "val"} <= set(splits["split"])


@pytest.mark.long
@pytest.mark.workflow
def test_own_labels(study: Path) -> None:
    told = run_page("own_labels", study)
    assert set(pd.read_csv(StringIO(told[3]))["raw_label"]) == {"TIL", "tumour nest"}
    labels = pd.read_parquet(study / "results/labels/mine_1/labels.parquet")
    assert set(labels.loc[(labels["raw_label"] == "TIL") & (labels["status"] == "labelled"), "class"]) == {"T_Cell"}


@pytest.mark.long
@pytest.mark.workflow
def test_own_patches(study: Path) -> None:
    told = run_page("own_patches", study)
    assert "FAIL" not in told[1] + told[2]
    splits = pd.read_parquet(study / "results/splits/trio_1.parquet")
    assert {"train", "val"} <= set(splits["split"])
    assert not (study / "results/slides/trio_1/he.ome.zarr").exists()


def test_every_tutorial_is_run() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(PAGES) <= tested


@pytest.mark.parametrize("page", PAGES)
def test_few_blocks_are_not_run(page: str) -> None:
    found = blocks(page)
    assert found
    assert sum(bool(block.not_run) for block in found) <= MOST_NOT_RUN


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ones_a_reader_can_give(page: str) -> None:
    for block in blocks(page):
        assert commands_of(block).strip(), f"{page}, line {block.line}"
        assert "\t" not in block.text, f"{page}, line {block.line}: a page of the site turns tabs into blanks"
