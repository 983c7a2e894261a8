"""The sheet of own slides: what can be wrong with its rows is told before any job."""

from __future__ import annotations

from pathlib import Path

import pytest

from nuclass.core.errors import UserError
from nuclass.core.own_sheet import own_inputs, read_own

SCHEMAS = Path(__file__).parent.parent / "config/schemas"
COLUMNS = ("slide", "image", "cells", "frame", "alignment", "columns", "origin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.tif").write_bytes(b"")
    (tmp_path / "xy.csv").write_text("x,y,name\n1,2,a\n")
    (tmp_path / "he.csv").write_text("x_he;y_he\n1;2\n")
    (tmp_path / "numbers.csv").write_text("1,2\n3,4\n")
    (tmp_path / "page.csv").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "cells.geojson").write_text("[]")
    (tmp_path / "he_imagealignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.xenium").write_text("{}")
    (tmp_path / "empty").mkdir()
    return tmp_path


def read(folder: Path, *rows: dict[str, str]) -> dict[str, dict[str, object]]:
    lines = ["\t".join(COLUMNS)]
    for number, row in enumerate(rows, start=1):
        known = {"slide": f"s{number}", "image": "a.tif"} | row
        lines.append("\t".join(known.get(name, "") for name in COLUMNS))
    (folder / "own.tsv").write_text("\n".join(lines) + "\n")
    return read_own("own.tsv", SCHEMAS, folder)


def refused(folder: Path, **row: str) -> UserError:
    with pytest.raises(UserError) as caught:
        read(folder, row)
    return caught.value


@pytest.mark.parametrize(
    "row",
    [
        {"cells": "detect"},
        {"cells": "detect:classical"},
        {"cells": "he.csv"},
        {"cells": "he.csv", "origin": "crop"},
        {"cells": "xy.csv", "frame": "um@0.25"},
        {"cells": "xy.csv", "frame": "px@0.5", "columns": "x=x,y=y,id=name", "origin": "image"},
        {"cells": "xy.csv", "frame": "xenium_um", "alignment": "grid"},
        {"cells": "xy.csv", "frame": "morph", "alignment": "1,0,5; 0,1,5"},
        {"cells": "cells.geojson"},
        {"cells": "cells.geojson", "frame": "morph", "alignment": "he_imagealignment.csv"},
        {"cells": "run", "alignment": "grid"},
        {"cells": "run/experiment.xenium", "frame": "xenium_um", "alignment": "he_imagealignment.csv"},
    ],
)
def test_rows_that_are_right(folder, row):
    found = read(folder, row)["s1"]
    assert found["cells"] == row["cells"]
    assert {name: found[name] for name in ("frame", "alignment", "columns", "origin")} == {
        name: row.get(name) for name in ("frame", "alignment", "columns", "origin")
    }


@pytest.mark.parametrize(
    ("row", "where", "told"),
    [
        ({"cells": "detect:magic"}, "column cells", "There is no such way to detect nuclei"),
        ({"cells": "detect:cellpose"}, "column cells", "Detection by cellpose needs its weights, which the sheet"),
        ({"cells": "detect", "frame": "um"}, "column frame", "Detected nuclei need no frame"),
        ({"cells": "detect", "alignment": "grid"}, "column cells", "The option alignment has no use with these"),
        ({"cells": "detect", "origin": "crop"}, "column cells", "The option origin has no use with these"),
        ({"cells": "he.csv", "frame": "pixels"}, "column frame", "The frame of the positions is not known"),
        ({"cells": "he.csv", "frame": "px"}, "column frame", "The size of the positions' px is not stated"),
        ({"cells": "he.csv", "columns": "a,b"}, "column columns", "The columns cannot be understood"),
        ({"cells": "he.csv", "alignment": "gone.csv"}, "column alignment", "the file of column alignment is missing"),
        ({"cells": "he.csv", "alignment": "grid"}, "column cells", "The option alignment has no use with these"),
        ({"cells": "xy.csv", "frame": "morph"}, "{folder}/xy.csv", "Positions of a Xenium run need the alignment"),
        ({"cells": "xy.csv"}, "{folder}/xy.csv, columns 'x' and 'y'", "The frame of the positions is not stated"),
        (
            {"cells": "xy.csv", "frame": "he", "columns": "x=a,y=b"},
            "{folder}/xy.csv, columns x",
            "A stated column is not",
        ),
        ({"cells": "numbers.csv", "frame": "he"}, "{folder}/numbers.csv", "The table of positions cannot be read"),
        ({"cells": "page.csv", "frame": "he"}, "{folder}/page.csv", "The file of positions is of no known kind"),
        ({"cells": "cells.geojson", "columns": "x=a,y=b"}, "column cells", "The option columns has no use with these"),
        ({"cells": "run"}, "{folder}/run", "Positions of a Xenium run need the alignment of the H&E"),
        ({"cells": "run", "frame": "he", "alignment": "grid"}, "column frame", "A Xenium run has a frame of its own"),
        ({"cells": "empty"}, "{folder}/empty", "a folder is no Xenium output"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder, row, where, told):
    fault = refused(folder, **row)
    assert fault.what.startswith(told)
    assert fault.where == f"own.tsv, line 2 (slide 's1'), {where.format(folder=folder)}"
    # The sheet has columns and no options.
    assert "--" not in str(fault)


def test_the_whole_message(folder):
    assert str(refused(folder, cells="detect", columns="x=a,y=b")) == (
        "The option columns has no use with these positions\n"
        "  where:      own.tsv, line 2 (slide 's1'), column cells\n"
        "  found:      columns x=a,y=b with cells detect\n"
        "  expected:   columns with a table: CSV, TSV or Parquet\n"
        "  to mend it: leave columns out"
    )


def test_an_origin_is_one_of_two(folder):
    fault = refused(folder, cells="he.csv", origin="corner")
    assert fault.what.startswith("the value of column origin is not valid")


def test_all_rows_are_told_at_once(folder):
    rows = [{"cells": "xy.csv"}, {"cells": "he.csv"}, {"cells": "detect:magic"}, {"cells": "gone.csv", "frame": "x"}]
    with pytest.raises(UserError) as caught:
        read(folder, *rows)
    told = str(caught.value)
    assert told.startswith("The sheet of own slides cannot be used: 4 faults\n"), told
    for line in (2, 4, 5):
        assert f"own.tsv, line {line} " in told


def test_an_alignment_that_lies_beside_a_run_is_enough(folder):
    (folder / "run" / "a_he_imagealignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n")
    assert own_inputs(read(folder, {"cells": "run"})["s1"], folder) == {
        "image": "a.tif",
        "cells": "run",
        "alignment": "run/a_he_imagealignment.csv",
    }


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"organ": "ovry"}, ["an organ is misspelt", "'ovry'", "Did you mean 'ovary'?"]),
        ({"mpp": "0"}, ["the scale of the H&E cannot be right", "0 um/px", "above 0 and at most 4"]),
        ({"mpp": "40"}, ["the scale of the H&E cannot be right", "40 um/px"]),
    ],
)
def test_an_organ_that_is_misspelt_and_a_scale_that_cannot_be(folder, values, told):
    row = {"slide": "s1", "image": "a.tif", "cells": "detect"} | values
    (folder / "own.tsv").write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    with pytest.raises(UserError) as caught:
        read_own("own.tsv", SCHEMAS, folder, organs=["lung", "ovary"])
    assert all(words in str(caught.value) for words in told), str(caught.value)


@pytest.mark.parametrize("organ", ["", "ovary", "Ovary", "unknown", "skin", "ovary 1", "Lung, left"])
def test_organs_that_the_models_know_or_never_saw(folder, organ):
    (folder / "own.tsv").write_text(f"slide\timage\tcells\torgan\tmpp\ns1\ta.tif\tdetect\t{organ}\t0.25\n")
    assert read_own("own.tsv", SCHEMAS, folder, organs=["lung", "ovary"])["s1"]["organ"] == (organ or None)
