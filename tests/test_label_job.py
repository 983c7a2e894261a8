"""From files to files: a slide is labelled by markers, by others' labels or by both; what cannot work is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

import nuclass.labels.job as job
from label_bundle import LabelBundle, write_label_bundle
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_json, write_parquet
from nuclass.labels.job import FILES, Tables, label_slide
from nuclass.labels.ontology import CLASSES
from panel_simulator import COARSE

REPOSITORY = Path(__file__).parent.parent
SETTINGS = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text(encoding="utf-8"))["labels"]
TABLES = Tables(
    REPOSITORY / "resources/markers/markers.tsv",
    REPOSITORY / "config/markers.tsv",
    REPOSITORY / "resources/label_ontology.yaml",
)
COMPARED = ("agreement.csv", "scores.csv", "unmapped.csv")
NAMES = {
    "malignant": "Tumor Cells",
    "T": "T Cells",
    "B": "B Cells",
    "plasma": "Plasma Cells",
    "macrophage": "Macrophages",
    "fibroblast": "Fibroblasts",
    "endothelial": "Endothelial Cells",
    "epithelial": "Purple Cells",
}
"""How another lab calls the cells of the simulator; the last name is in no ontology, and the rest have none."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> LabelBundle:
    return write_label_bundle(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def by_markers(bundle: LabelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("markers")
    label(bundle, out)
    return out


@pytest.fixture
def given(bundle: LabelBundle, tmp_path: Path) -> Path:
    file = tmp_path / "given.csv"
    names = bundle.truth.map(COARSE).map(NAMES).fillna("")
    pd.DataFrame({"cell_id": names.index, "group": names.to_numpy()}).to_csv(file, index=False)
    return file


def label(slide: LabelBundle, out: Path, **other: Any) -> None:
    wanted: dict[str, Any] = {
        "bundle": slide.folder,
        "cells": slide.cells_file,
        "tables": TABLES,
        "organ": "breast",
        "settings": SETTINGS,
        "name": "slide_1",
    }
    label_slide(**{**wanted, "out": out, **other})


def told(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def test_every_file_is_written_and_can_be_read(bundle: LabelBundle, by_markers: Path) -> None:
    assert sorted(path.name for path in by_markers.iterdir()) == sorted([*FILES, *COMPARED])
    for path in by_markers.iterdir():
        if path.suffix == ".csv":
            assert len(pd.read_csv(path).columns) > 2, path.name
    labels = pd.read_parquet(by_markers / "labels.parquet")
    assert labels["cell_id"].tolist() == bundle.cells["cell_id"].tolist()
    kept = bundle.cells.loc[bundle.cells["status"] == "kept", "cell_id"].tolist()
    assert pd.read_parquet(by_markers / "posteriors.parquet")["cell_id"].tolist() == kept
    assert sorted(pd.read_parquet(by_markers / "umap.parquet")["cell_id"]) == sorted(kept)
    evidence = pd.read_csv(by_markers / "evidence.csv")
    assert sorted(evidence["resolution"].unique()) == SETTINGS["resolutions"]
    assert (evidence.groupby(["resolution", "cell_type"])["cells"].sum() == len(kept)).all()


def test_the_labels_are_those_of_the_simulator(bundle: LabelBundle, by_markers: Path) -> None:
    labels = pd.read_parquet(by_markers / "labels.parquet").set_index("cell_id")
    typed = labels[labels["status"] == "labelled"]
    coarse = bundle.truth.map(COARSE).reindex(typed.index)
    for group, kind in (("B", "B_Cell"), ("malignant", "Epithelial_Malignant"), ("plasma", "Plasma_Cell")):
        assert (typed.loc[coarse == group, "cell_type"] == kind).mean() > 0.85, group
    assert len(typed) > 0.8 * len(labels)
    assert set(labels["class"]) <= {"", *CLASSES}
    plasma = typed[typed["cell_type"] == "Plasma_Cell"]
    assert set(plasma["class"]) == {""}
    assert set(plasma["reason"]) == {"no_class"}


def test_the_summary_counts_the_labels_that_were_written(by_markers: Path) -> None:
    labels, summary = pd.read_parquet(by_markers / "labels.parquet"), read_json(by_markers / "summary.json")
    assert summary["source"] == "markers"
    assert summary["cells"] == labels["status"].value_counts().to_dict()
    assert summary["classes"] == labels.loc[labels["class"] != "", "class"].value_counts().to_dict()
    assert "given" not in summary
    assert [len(pd.read_csv(by_markers / name)) for name in COMPARED] == [0, 0, 0]


def test_given_labels_count_and_the_markers_are_compared(
    bundle: LabelBundle, by_markers: Path, given: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label(bundle, tmp_path / "out", source="given", given=str(given))
    labels = pd.read_parquet(tmp_path / "out/labels.parquet").set_index("cell_id")
    names = pd.read_csv(given, keep_default_na=False).set_index("cell_id")["group"]
    kept = labels["status"] != "dropped"
    assert (labels.loc[kept & (names == "Tumor Cells"), "class"] == "Epithelial_Malignant").all()
    assert (labels.loc[kept & (names == "Purple Cells"), "reason"] == "unmapped").all()
    assert (labels.loc[kept & (names == ""), "reason"] == "no_given_label").all()
    unmapped = pd.read_csv(tmp_path / "out/unmapped.csv")
    assert unmapped[["raw_label", "cells"]].to_numpy().tolist() == [["Purple Cells", (names == "Purple Cells").sum()]]
    assert "given label 'Purple Cells'" in caplog.text
    summary = read_json(tmp_path / "out/summary.json")
    assert summary["cells"] == labels["status"].value_counts().to_dict()
    assert summary["given"]["unmapped"] == (names == "Purple Cells").sum()
    own = pd.read_parquet(by_markers / "labels.parquet")
    assert summary["markers"]["cells"] == own["status"].value_counts().to_dict()
    assert summary["agreement"]["levels"]["lineage"]["accuracy"] > 0.8
    pairs = pd.read_csv(tmp_path / "out/agreement.csv")
    tumour = pairs[(pairs["level"] == "class") & (pairs["given"] == "Epithelial_Malignant")]
    assert tumour["cells"].sum() == (kept & (names == "Tumor Cells")).sum()


def test_given_then_markers_fills_up_what_is_not_given(
    bundle: LabelBundle, by_markers: Path, given: Path, tmp_path: Path
) -> None:
    label(bundle, tmp_path / "out", source="given_then_markers", given=str(given))
    labels = pd.read_parquet(tmp_path / "out/labels.parquet")
    own = pd.read_parquet(by_markers / "labels.parquet")
    names = pd.read_csv(given, keep_default_na=False)["group"]
    mapped = ~names.isin(["", "Purple Cells"]) & (labels["status"] != "dropped")
    assert set(labels.loc[mapped, "source"]) == {"given"}
    filled = ~mapped & (labels["status"] != "dropped")
    assert set(labels.loc[filled, "source"]) == {"markers"}
    pd.testing.assert_frame_equal(labels[filled], own[filled])
    assert labels["cluster"].tolist() == own["cluster"].tolist()


def test_with_markers_a_given_file_is_compared_only(
    bundle: LabelBundle, by_markers: Path, given: Path, tmp_path: Path
) -> None:
    label(bundle, tmp_path / "out", source="markers", given=str(given))
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out/labels.parquet"), pd.read_parquet(by_markers / "labels.parquet")
    )
    assert len(pd.read_csv(tmp_path / "out/scores.csv"))


def test_labels_that_came_with_the_slide_are_found_and_can_be_refused(
    bundle: LabelBundle, given: Path, tmp_path: Path
) -> None:
    inventory = bundle.folder / "bundle.json"
    content = read_json(inventory)
    (bundle.folder / "groups.csv").write_bytes(given.read_bytes())
    write_json(inventory, {**content, "given": "groups.csv"})
    try:
        label(bundle, tmp_path / "a", source="given")
        assert read_json(tmp_path / "a/summary.json")["given"]["file"] == str(bundle.folder / "groups.csv")
        label(bundle, tmp_path / "b", given="none")
        assert "given" not in read_json(tmp_path / "b/summary.json")
    finally:
        write_json(inventory, content)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail where a fault is told after the work only."""
    monkeypatch.setattr(job, "label_cells", lambda *_: pytest.fail("the cells were labelled first"))


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("word", ["", "none"])
def test_given_without_a_file(bundle: LabelBundle, tmp_path: Path, word: str) -> None:
    assert told(lambda: label(bundle, tmp_path / "out", source="given", given=word)) == (
        "A slide's labels are to be given, and there is no file of them\n"
        "  where:      slide_1\n"
        "  expected:   a file in the column 'given' of the slides sheet, or with --given\n"
        "  to mend it: name it there, or let markers decide (column 'labels', or --labels markers)"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
def test_given_labels_of_another_slide(bundle: LabelBundle, tmp_path: Path) -> None:
    file = tmp_path / "other.csv"
    pd.DataFrame({"cell_id": ["zzzzzzza-1", "zzzzzzzb-1"], "group": "T Cells"}).to_csv(file, index=False)
    message = told(lambda: label(bundle, tmp_path / "out", given=str(file)))
    assert message.startswith("given labels are of another slide\n")
    assert "0 of its 2 labelled ids" in message


@pytest.mark.usefixtures("no_work")
def test_cells_that_have_no_counts(bundle: LabelBundle, tmp_path: Path) -> None:
    more = pd.concat([bundle.cells, bundle.cells.tail(2).assign(cell_id=["new-1", "new-2"])])
    write_parquet(tmp_path / "cells.parquet", more)
    message = told(lambda: label(bundle, tmp_path / "out", cells=tmp_path / "cells.parquet"))
    assert message.startswith("Cells of the slide have no counts\n")
    assert "2 of 702 missing, such as new-1" in message


@pytest.mark.usefixtures("no_work")
def test_a_table_of_cells_that_is_none(bundle: LabelBundle, tmp_path: Path) -> None:
    assert "is missing" in told(lambda: label(bundle, tmp_path / "out", cells=tmp_path / "cells.parquet"))
    (tmp_path / "cells.parquet").write_text("cut off", encoding="utf-8")
    assert "cannot be read" in told(lambda: label(bundle, tmp_path / "out", cells=tmp_path / "cells.parquet"))
    own = bundle.folder / "cells.parquet"
    message = told(lambda: label(bundle, tmp_path / "out", cells=own))
    assert "lacks columns" in message
    assert "expected:   status, reason" in message
    assert "build-slide" in message


@pytest.mark.usefixtures("no_work")
def test_a_slide_of_which_quality_control_left_nothing(bundle: LabelBundle, tmp_path: Path) -> None:
    gone = bundle.cells.assign(status="dropped", reason=np.resize(["no_nucleus", "low_counts", "low_counts"], 700))
    write_parquet(tmp_path / "cells.parquet", gone)
    assert told(lambda: label(bundle, tmp_path / "out", cells=tmp_path / "cells.parquet")) == (
        "Too few cells are left to label\n"
        f"  where:      {tmp_path / 'cells.parquet'}\n"
        "  found:      0 of 700; dropped: low_counts 466, no_nucleus 234\n"
        "  expected:   at least 12, for two types of labels.min_seeds cells each\n"
        "  to mend it: check that the counts are whole, or lower the thresholds under 'qc'"
    )


@pytest.fixture
def without_markers(bundle: LabelBundle, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder)
    with h5py.File(folder / "cell_feature_matrix.h5", "r+") as stream:
        names = [b"GENE%d" % k for k in range(len(stream["matrix/features/name"]))]
        del stream["matrix/features/name"]
        stream["matrix/features/name"] = np.array(names)
    return folder


@pytest.mark.parametrize("source", ["markers", "given_then_markers"])
def test_a_panel_without_markers_of_any_type(
    bundle: LabelBundle, tmp_path: Path, without_markers: Path, given: Path, source: str
) -> None:
    message = told(lambda: label(bundle, tmp_path / "out", bundle=without_markers, source=source, given=str(given)))
    assert message.startswith("The panel cannot tell cell types apart\n")
    assert "Adipocyte: the panel holds 0 of its markers; 3 are needed" in message
    assert "does not occur in breast" not in message, "what cannot be of help stands before what can"
    assert "; and " in message
    assert "labels.extra_markers" in message


def test_given_labels_need_no_markers(
    bundle: LabelBundle, tmp_path: Path, without_markers: Path, given: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    label(bundle, out, bundle=without_markers, source="given", given=str(given))
    labels = pd.read_parquet(out / "labels.parquet")
    truth = bundle.truth[labels["cell_id"]].map(COARSE).to_numpy()
    assert (labels.loc[(truth == "T") & (labels["status"] != "dropped"), "class"] == "T_Cell").all()
    assert "markers cannot label this slide" in caplog.text
    summary = read_json(out / "summary.json")
    assert summary["agreement"]["both"] == 0
    assert summary["warnings"][0].startswith("The panel cannot tell cell types apart")
    assert len(pd.read_parquet(out / "umap.parquet")) == (bundle.cells["status"] == "kept").sum()
    for file in (*FILES, *COMPARED):
        assert (out / file).exists(), file


@pytest.mark.usefixtures("no_work")
def test_a_panel_of_another_species(real_data: Path, tmp_path: Path) -> None:
    mouse = real_data / "xenium_v3.0.0_mouse_ileum_tiny"
    ids = pd.read_parquet(mouse / "cells.parquet", columns=["cell_id"])
    ids["cell_id"] = ids["cell_id"].map(lambda name: name.decode() if isinstance(name, bytes) else name)
    write_parquet(tmp_path / "cells.parquet", ids.assign(status="kept", reason=""))
    message = told(
        lambda: label_slide(
            bundle=mouse,
            cells=tmp_path / "cells.parquet",
            tables=TABLES,
            organ="colon",
            settings=SETTINGS,
            out=tmp_path / "out",
        )
    )
    assert message.startswith("The panel looks like one of another species\n")
    assert str(mouse) in message
    assert "genes are markers but for their spelling" in message
    assert "0 are spelt as in the marker table" in message


def test_no_cell_of_a_class(bundle: LabelBundle, tmp_path: Path) -> None:
    message = told(lambda: label(bundle, tmp_path / "out", settings={**SETTINGS, "min_confidence": 1.0}))
    assert message.startswith("No cell of the slide gets a class of the study\n")
    assert f"where:      step label_cells, {bundle.folder}" in message
    assert "reasons: unsure 6" in message
    assert "labels.min_confidence" in message
    assert not (tmp_path / "out").exists()


class StoppedError(Exception):
    """What stops the work between two files."""


@pytest.mark.parametrize("after", [0, 3, len(FILES) + len(COMPARED) - 1])
def test_what_stops_between_files_leaves_no_labels(
    bundle: LabelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written: list[Path] = []

    def stopping(write: Callable[..., None]) -> Callable[..., None]:
        def instead(path: Path, *arguments: Any, **named: Any) -> None:
            if len(written) == after:
                raise StoppedError
            write(path, *arguments, **named)
            written.append(path)

        return instead

    old = {"labels.parquet": b"of the last run"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    for name in ("write_csv", "write_json", "write_parquet"):
        monkeypatch.setattr(job, name, stopping(getattr(job, name)))
    with pytest.raises(StoppedError):
        label(bundle, tmp_path)
    assert (tmp_path / "labels.parquet").read_bytes() == b"of the last run"
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_job_that_is_killed_within_a_file_leaves_none_under_its_name(bundle: LabelBundle, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import pandas as pd\n"
        "def half(self, path, **named):\n"
        "    open(path, 'wb').write(b'PAR1 half'); os._exit(9)\n"
        "pd.DataFrame.to_parquet = half\n"
        "import test_label_job as t\n"
        "from label_bundle import LabelBundle\n"
        "from pathlib import Path\n"
        f"b = LabelBundle(Path({str(bundle.folder)!r}), Path({str(bundle.cells_file)!r}), None, None)\n"
        f"t.label(b, Path({str(tmp_path)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 9, done.stderr[-2000:]
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".parquet" and path.name[0] != "."]
    label(bundle, tmp_path)
    assert len(pd.read_parquet(tmp_path / "labels.parquet")) == 700
