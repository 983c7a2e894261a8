"""The methods page: its numbers are those of the files and settings."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from nuclass.core.errors import UserError
from nuclass.core.files import write_json
from nuclass.tables.methods import write_methods

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    models = yaml.safe_load((ROOT / "config" / "models" / "demo.yaml").read_text(encoding="utf-8"))
    for name, seed in (("local", 42), ("global", 43), ("gate", 44)):
        models[name]["seed"] = seed
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    config |= {"study": "one & two", "splits": {"layout": "bands", "buffer_um": 100, "seed": 5}}
    config["labels"] = {"confidence": "calibrated", "min_confidence": 0.5, "source": "markers", "seed": 6}
    rows = [("a", "ovary", "train", "train", "T", 700), ("a", "ovary", "train", "val", "T", 200),
            ("b", "lung", "train", "train", "B", 800), ("b", "lung", "train", "buffer", "B", 40),
            ("c", "lung", "cohort", "test", "T", 1234)]  # fmt: skip
    counts = pd.DataFrame(rows, columns=["slide", "organ", "role", "split", "class", "cells"])
    counts.to_csv(tmp_path / "counts.csv", index=False)
    quality = {
        "slide": ["a", "b"],
        "cells": [1000, 3000],
        "with_class": [900, 2100],
        "abstained": [60, 700],
        "dropped": 40,
    }
    pd.DataFrame(quality).to_csv(tmp_path / "quality.csv", index=False)
    shared = {
        "epochs": 4,
        "seconds": 90.0,
        "parameters": 1500,
        "temperature": 0.5,
        "val": {"f1_macro": 0.7, "accuracy": 0.8},
    }
    for name in ("local", "global"):
        write_json(tmp_path / f"{name}.json", shared | {"n_train": 1500, "effective_batch_size": 64})
    write_json(tmp_path / "gate.json", shared | {"n_fit": 150, "n_select": 50})
    return {
        "config": config,
        "models": models,
        "composition": tmp_path / "counts.csv",
        "quality": tmp_path / "quality.csv",
        "metrics": {name: tmp_path / f"{name}.json" for name in ("local", "global", "gate")},
        "protocol": "corrected",
        "packages": {"torch": "2.6", "absent": None},
        "synthetic": True,
    }


def written(study: dict[str, Any], folder: Path) -> str:
    write_methods(folder / "m.html", **study)
    page = (folder / "m.html").read_text(encoding="utf-8")
    assert "<h1>Methods of the study one &amp; two</h1>" in page
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_numbers_are_those_of_the_study(study: dict[str, Any], tmp_path: Path) -> None:
    text = written(study, tmp_path)
    for words in (
        "2 training slides (2 organs: ovary, lung) and 1 held-out cohort (1 organ: lung), with 2 classes",
        "224 px (56 um) and the global one 1024 px (256 um)",
        "of 4,000 cells 3,000 have a label with a class of the study (75.0 %), 760 abstain and 80 fail",
        "1,500 cells train, 200 validation. 40 cells in a buffer of 100 um",
        "timm:resnet10t on 96 px sees the local window; the organ modulates its features (FiLM)",
        "It trained 4 epochs on 1,500 cells and has 1,500 parameters; temperature 0.500",
        "the weight (1 - p_A(y))^2",
        "hidden layers of 64 and 32 units",
        "fitted to 150 cells of validation and stopped by 50 others",
        "1,234 labelled cells of 1 cohort are reported on",
        "labels 6, splits 5, evaluation 42, local model 42, global model 43, gate model 44",
        "Synthetic slides are among them",
    ):
        assert words in re.sub(r"\s+", " ", text), words
    assert re.search(r"local\s+4\s+1\.5\s+1,500\s+0\.700\s+0\.800", text)
    assert re.search(r"torch\s+2\.6", text)
    assert "absent" not in text


def test_a_study_without_labels_or_cohorts(study: dict[str, Any], tmp_path: Path) -> None:
    pd.read_csv(study["composition"]).iloc[:0].to_csv(study["composition"], index=False)
    pd.read_csv(study["quality"]).iloc[:0].to_csv(study["quality"], index=False)
    text = written(study | {"synthetic": False}, tmp_path)
    assert "0 training slides (0 organs: none)" in text
    assert "Synthetic" not in text


def test_a_table_without_its_columns_is_told(study: dict[str, Any], tmp_path: Path) -> None:
    pd.read_csv(study["composition"]).drop(columns="role").to_csv(study["composition"], index=False)
    with pytest.raises(UserError, match="lacks columns"):
        write_methods(tmp_path / "m.html", **study)
