"""The sheet of own slides, and the rule that types them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.core.own_sheet import own_inputs, read_own
from own_slide_example import CELLS, own_files
from test_workflow import REPOSITORY, copy, snakemake
from toy_study import toy

__all__ = ["copy"]
SCHEMAS = REPOSITORY / "config/schemas"


def write_sheet(folder: Path, *rows: str, header: str = "slide\timage\tcells\torgan\tmpp\tframe") -> str:
    (folder / "own.tsv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "cells.csv").write_text("x,y\n1,2\n")
    (folder / "a.tif").write_bytes(b"")
    return "own.tsv"


def test_no_sheet_is_no_slides():
    assert read_own("", SCHEMAS) == {}


def test_rows_are_read(tmp_path):
    sheet = write_sheet(tmp_path, "s1\ta.tif\tcells.csv\tovary\t0.25\tum", "s2\ta.tif\tdetect\t\t\t")
    found = read_own(sheet, SCHEMAS, tmp_path)
    nothing = {"alignment": None, "columns": None, "origin": None}
    assert found == {
        "s1": {"image": "a.tif", "cells": "cells.csv", "organ": "ovary", "mpp": 0.25, "frame": "um", **nothing},
        "s2": {"image": "a.tif", "cells": "detect", "organ": None, "mpp": None, "frame": None, **nothing},
    }
    assert own_inputs(found["s1"]) == {"image": "a.tif", "cells": "cells.csv"}
    assert own_inputs(found["s2"]) == {"image": "a.tif"}


def test_all_faults_are_told_with_their_lines(tmp_path):
    rows = ["s 1\ta.tif\tcells.csv\t\t40x\t", "s2\tgone.tif\tgone.csv\t\t\t", "s2\ta.tif\tdetect\t\t\t"]
    sheet = write_sheet(tmp_path, *rows)
    with pytest.raises(UserError) as caught:
        read_own(sheet, SCHEMAS, tmp_path)
    told = str(caught.value)
    assert told.startswith("The sheet of own slides cannot be used: 6 faults\n"), told
    for part in (
        "own.tsv, line 2 (slide 's 1')",
        "the value of column mpp is not valid",
        "the file of column image is missing",
        "the file of column cells is missing",
        "own.tsv, line 3 (slide 's2')",
        "The frame of the positions is not stated",
        "a slide stands in several rows",
    ):
        assert part in told, part


def test_a_missing_sheet_is_told(tmp_path):
    with pytest.raises(UserError, match="a sheet is missing"):
        read_own("gone.tsv", SCHEMAS, tmp_path)


@pytest.mark.workflow
def test_the_goal_resolves(copy: Path):
    sheet = write_sheet(copy, "s1\ta.tif\tcells.csv\tovary\t0.25\tum", "ovary_h\ta.tif\tdetect\t\t\t")
    done = snakemake("-n", "own", "--config", f"own={sheet}", folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^predict_own +2$", done.stdout, re.MULTILINE)
    assert re.search(r"^train_gate +1$", done.stdout, re.MULTILINE)
    (copy / "a.tif").unlink()
    done = snakemake("-n", "own", "--config", f"own={sheet}", folder=copy)
    assert done.returncode == 1
    assert "the file of column image is missing" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.workflow
def test_the_rule_types_a_slide(copy: Path, tmp_path_factory):
    """With the models of the toy study, as if they were those of this one."""
    study, _ = toy(tmp_path_factory)
    for name in ("models", "backbones"):
        shutil.copytree(study.results / name, copy / "results" / name)
    sheet = write_sheet(copy, "mine\ta.tif\tcells.csv\tlung\t0.25\the")
    own_files(copy, "a.tif", ("x", "y"))
    command = ["--cores", "1", "--allowed-rules", "predict_own", "own", "--config", f"own={sheet}", "--", "own"]
    done = snakemake(*command, folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = copy / "results/own/mine"
    table = pd.read_parquet(folder / "predictions.parquet")
    assert len(table) == CELLS
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["slide"], facts["organ"], facts["model"]) == ("mine", "lung", "gate")
    assert {"summary.html", "explorer", "predictions.csv", "predictions.geojson"} <= {f.name for f in folder.iterdir()}
    assert f"{CELLS} cells to predict, 0 left out" in (copy / "logs/predict_own/mine.log").read_text()
    again = snakemake("-n", *command, folder=copy)
    assert "Nothing to be done" in again.stdout + again.stderr
