"""The rules of a bundle: they hold in a real and a written one, and each is broken by its own mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from bundle_example import example
from nuclass.core.errors import UserError
from nuclass.synthetic.bundle import write_bundle
from nuclass.xenium.checks import Check, check_bundle, format_checks, is_gene, worst_verdict
from nuclass.xenium.reader import Bundle, read_bundle


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_bundle(folder, "lung_9", example())
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def failing(bundle: Bundle) -> dict[str, Check]:
    return {c.name: c for c in check_bundle(bundle) if c.verdict not in ("pass", "skipped")}


def test_the_real_bundle_passes(real_data: Path) -> None:
    checks = check_bundle(read_bundle(real_data / "xenium_v3.0.0_mouse_ileum_tiny"), rows=300)
    assert [c.verdict for c in checks] == ["pass"] * 11
    area = next(c for c in checks if c.name.startswith("area"))
    assert area.found == "median ratio 0.961, range 0.934 to 0.978"


def test_a_written_bundle_passes(written: Path) -> None:
    checks = check_bundle(read_bundle(written))
    assert [c.verdict for c in checks] == ["pass"] * 11
    assert worst_verdict(checks) == "pass"
    lines = format_checks(checks)
    assert lines[0] == "PASS    number of cells: 60 rows"
    assert len(lines) == 11


def change(name: str, edit: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        frame = pd.read_parquet(folder / f"{name}.parquet")
        out = edit(frame)
        (frame if out is None else out).to_parquet(folder / f"{name}.parquet", index=False)

    return apply


def change_experiment(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "experiment.xenium"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


def rename_gene(folder: Path) -> None:
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as file:
        file["matrix/features/name"][3] = b"OTHER"


def set_cell(column: str, row: int, value: object) -> Callable[[pd.DataFrame], None]:
    def edit(frame: pd.DataFrame) -> None:
        frame.loc[row, column] = value

    return edit


def add(column: str, row: int, value: float) -> Callable[[pd.DataFrame], None]:
    def edit(frame: pd.DataFrame) -> None:
        frame.loc[row, column] += value

    return edit


CASES: list[tuple[Callable[[Path], None], dict[str, str], str]] = [
    (
        change("cells", add("transcript_counts", 7, 1)),
        {
            "transcript_counts against the transcripts": "fail",
            "transcript_counts against the feature matrix": "fail",
        },
        "{id7}: table {n7}, counted {m7}",
    ),
    (change("cells", add("total_counts", 7, 1)), {"total_counts against the transcripts": "fail"}, "{id7}: table"),
    (change_experiment(num_cells=61), {"number of cells": "fail"}, "different runs"),
    (
        change("transcripts", lambda t: t.assign(cell_id=t["cell_id"].replace({t["cell_id"][0]: "zzzz-1"}))),
        {
            "transcript_counts against the transcripts": "fail",
            "total_counts against the transcripts": "fail",
            "cells of the transcripts": "fail",
        },
        "the first is of zzzz-1",
    ),
    (
        change("nucleus_boundaries", lambda b: b.assign(cell_id=b["cell_id"].replace({b["cell_id"][0]: "zzzz-1"}))),
        {"cells of the nucleus outlines": "fail"},
        "the first is of zzzz-1",
    ),
    (
        change("cell_boundaries", lambda b: b.assign(vertex_x=b["vertex_x"] / 0.2125, vertex_y=b["vertex_y"] / 0.2125)),
        {
            "area of the cell outlines against cell_area": "fail",
            "cell centroids inside their outlines' boxes": "fail",
        },
        "ratio 22.15",
    ),
    (
        change("cells", lambda c: c.assign(cell_area=c["cell_area"] * 1.3)),
        {"area of the cell outlines against cell_area": "warn"},
        "",
    ),
    (
        change("cells", add("x_centroid", 7, 15.0)),
        {"cell centroids inside their outlines' boxes": "fail"},
        "{id7}: centroid",
    ),
    (
        change("cells", set_cell("x_centroid", 7, 200.0)),
        {"cell centroids inside their outlines' boxes": "fail", "coordinates inside the region": "fail"},
        "{id7}: centroid 200.0,",
    ),
    (
        change("transcripts", set_cell("x_location", 7, 200.0)),
        {"coordinates inside the region": "warn"},
        "",
    ),
    (
        rename_gene,
        {"genes of the panel against the feature matrix": "fail"},
        "1 in the panel only, such as GENE3; 1 in the matrix only, such as OTHER",
    ),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_each_mistake_is_found(folder: Path, case: int) -> None:
    damage, verdicts, detail = CASES[case]
    before = read_bundle(folder).cells()
    damage(folder)
    found = failing(read_bundle(folder))
    assert {name: check.verdict for name, check in found.items()} == verdicts
    n7 = int(before["transcript_counts"][7])
    wanted = detail.format(id7=before["cell_id"][7], n7=n7 + 1, m7=n7)
    assert wanted in " ".join(check.detail for check in found.values())
    assert worst_verdict(found.values()) == ("fail" if "fail" in verdicts.values() else "warn")
    lines = format_checks(found.values())
    assert lines[0].startswith(("FAIL    ", "WARN    "))
    assert lines[1].startswith("          expected: ")


def test_missing_files_skip_their_rules(folder: Path) -> None:
    for pattern in ("transcripts*", "cell_feature_matrix*", "*_boundaries*", "cells.zarr.zip", "gene_panel*", "morph*"):
        for file in folder.glob(pattern):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    # The cells need their nuclei.
    shutil.copy(_write_nuclei(folder), folder / "nucleus_boundaries.parquet")
    checks = {c.name: c for c in check_bundle(read_bundle(folder))}
    assert (
        checks["transcript_counts against the transcripts"].detail == "the bundle folder holds no table of transcripts"
    )
    assert checks["transcript_counts against the feature matrix"].verdict == "skipped"
    assert checks["cells of the cell outlines"].verdict == "skipped"
    assert (
        checks["genes of the panel against the feature matrix"].detail == "the bundle folder holds no gene_panel.json"
    )
    assert checks["coordinates inside the region"].verdict == "pass"
    assert "no morphology image" in checks["coordinates inside the region"].expected
    assert worst_verdict(checks.values()) == "pass"


def _write_nuclei(folder: Path) -> Path:
    cells = pd.read_parquet(folder / "cells.parquet")
    step = np.array([[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]])
    xy = cells[["x_centroid", "y_centroid"]].to_numpy()[:, None] + step
    frame = pd.DataFrame(
        {"cell_id": np.repeat(cells["cell_id"], 5), "label_id": np.repeat(np.arange(len(cells)) + 1, 5)}
    )
    frame["vertex_x"], frame["vertex_y"] = xy.reshape(-1, 2).T
    frame.to_parquet(folder / "made.parquet")
    return folder / "made.parquet"


def test_transcripts_on_demand(written: Path) -> None:
    checks = check_bundle(read_bundle(written), transcripts=False)
    assert [c.detail for c in checks if c.verdict == "skipped"] == ["the transcripts were not asked for"] * 3
    lines = format_checks(checks)
    assert lines[1:3] == [
        "SKIPPED transcript_counts against the transcripts: not checked",
        "          the transcripts were not asked for",
    ]


def test_total_as_the_sum_of_its_columns_warns(folder: Path) -> None:
    cells = pd.read_parquet(folder / "cells.parquet").drop(columns="unassigned_codeword_counts")
    cells["total_counts"] = cells.filter(regex="_counts$").drop(columns="total_counts").sum(axis=1)
    cells.to_parquet(folder / "cells.parquet", index=False)
    (check,) = failing(read_bundle(folder)).values()
    assert (check.name, check.verdict) == ("total_counts against the transcripts", "warn")
    assert "sum of the table's own columns" in check.detail


def test_what_is_a_gene() -> None:
    names = pd.Index(
        ["EPCAM", "BLANK_0001", "NegControlProbe_00001", "antisense_X", "BLANK_GENE", "Intergenic_Region_1"]
    )
    assert list(is_gene(names, None)) == [True, False, False, False, False, False]
    types = pd.Series({"BLANK_GENE": "Gene Expression", "EPCAM": "Blank Codeword"})
    assert list(is_gene(names, types)) == [False, False, False, False, True, False]


def test_a_broken_panel_is_told(folder: Path) -> None:
    (folder / "gene_panel.json").write_text('{"payload": {}}')
    with pytest.raises(UserError, match=r"gene panel has an unknown layout[\s\S]*found: +no 'targets'"):
        check_bundle(read_bundle(folder), transcripts=False)
