"""``nuclass label``: a table of counts goes in, a table of labels and a word on it come out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from label_bundle import write_label_bundle
from nuclass.cli import main
from nuclass.cli_labels import _REASONS
from nuclass.labels.given import LABEL_COLUMNS
from nuclass.labels.job import FILES
from panel_simulator import COARSE, Slide, simulate_panel

REPOSITORY = Path(__file__).parent.parent
MAST = ("CPA3", "HPGDS", "KIT", "MS4A2", "SLC18A2", "CTSG", "GATA2", "CD69", "HDC", "IL1RL1", "TPSAB1", "TPSB2")


@pytest.fixture(scope="module")
def slide() -> Slide:
    return simulate_panel("breast", n=900, seed=3, shares={"mast": 0.06, "malignant": 0.3, "T": 0.2, "fibroblast": 0.2,
                                                          "macrophage": 0.12, "B": 0.06, "plasma": 0.06})  # fmt: skip


@pytest.fixture
def folder(slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside of any study, with counts as .h5ad and .csv."""
    data = slide.counts.copy()
    data.obs = slide.cells.set_index("cell_id")[["x_um", "y_um"]]
    data.write_h5ad(tmp_path / "counts.h5ad")
    frame(data).to_csv(tmp_path / "counts.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frame(data: anndata.AnnData) -> pd.DataFrame:
    values = pd.DataFrame(data.X.toarray().astype(int), index=data.obs_names, columns=data.var_names)
    return values.rename_axis("cell_id").join(data.obs[["x_um", "y_um"]])


def label(*arguments: str, counts: str = "counts.h5ad", organ: str = "breast", out: str = "labels.parquet") -> int:
    return main(["label", "--counts", counts, "--organ", organ, "--out", out, *arguments])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the user is told of a mistake, without the lines of the log."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return "".join(line for line in error.splitlines(keepends=True) if " INFO " not in line and " WARNING " not in line)


def test_a_table_is_labelled_from_any_folder(folder: Path, slide: Slide) -> None:
    command = [sys.executable, "-m", "nuclass.cli", "label", "--counts", "counts.h5ad", "--organ", "breast"]
    done = subprocess.run(
        [*command, "--out", "new/labels.parquet"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    labels = pd.read_parquet(folder / "new/labels.parquet")
    assert list(labels.columns) == list(LABEL_COLUMNS)
    assert labels["cell_id"].tolist() == slide.cells["cell_id"].tolist()
    labelled = labels[labels["status"] == "labelled"]
    classes = (labelled["class"] != "").sum()
    lines = done.stdout.splitlines()
    share = f"{len(labelled) / 9:.1f} %"
    assert lines[0] == f"900 cells: {len(labelled)} labelled ({share}), {classes} of them of a class of the study"
    assert lines[-1] == "Wrote new/labels.parquet."
    assert lines[-2] == "Columns: " + ", ".join(LABEL_COLUMNS)
    row = next(line for line in lines if line.startswith("  Plasma_Cell "))
    assert row.split() == ["Plasma_Cell", *_share(labelled, "Plasma_Cell"), "%", "no", "class"]
    row = next(line for line in lines if line.startswith("  B_Cell "))
    assert row.split() == ["B_Cell", *_share(labelled, "B_Cell"), "%"]
    coarse = slide.truth.map(COARSE).to_numpy()[labelled.index]
    assert (labelled.loc[coarse == "plasma", "cell_type"] == "Plasma_Cell").mean() > 0.85
    assert sorted(path.name for path in folder.iterdir()) == ["counts.csv", "counts.h5ad", "new"]


def _share(labelled: pd.DataFrame, name: str) -> list[str]:
    count = (labelled["cell_type"] == name).sum()
    return [str(count), f"{count / 9:.1f}"]


def test_csv_in_and_out_says_the_same(folder: Path) -> None:
    assert label() == 0
    assert label(counts="counts.csv", out="labels.csv") == 0
    first = pd.read_parquet("labels.parquet")
    second = pd.read_csv("labels.csv", keep_default_na=False, na_values={"confidence": [""], "margin": [""]})
    for name in ("cell_id", "cell_type", "class", "status", "reason"):
        assert first[name].tolist() == second[name].tolist(), name
    np.testing.assert_allclose(first["confidence"], second["confidence"], rtol=1e-5)


def test_the_evidence_of_a_table(folder: Path, slide: Slide, capsys: pytest.CaptureFixture[str]) -> None:
    assert label("--evidence", "why") == 0
    labels, why = pd.read_parquet("labels.parquet"), folder / "why"
    assert sorted(file.name for file in why.iterdir()) == [
        "evidence.csv", "markers.csv", "posteriors.parquet", "summary.json",
    ]  # fmt: skip
    kept = labels.loc[labels["status"] != "dropped", "cell_id"].tolist()
    assert pd.read_parquet(why / "posteriors.parquet")["cell_id"].tolist() == kept
    assert set(pd.read_csv(why / "markers.csv")["cell_type"]) == set(labels["cell_type"]) - {""}
    (folder / "sure.yaml").write_text("labels: {min_confidence: 1.0}\n", encoding="utf-8")
    assert label("--evidence", "none", "--configfile", "sure.yaml") == 0, "nothing is certain enough"
    capsys.readouterr()
    assert label("--evidence", "counts.csv") == 1
    assert told(capsys).startswith("--evidence is a file\n")


def test_every_cell_without_a_label_is_accounted_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv("counts.csv", index_col=0)
    table.iloc[:7, :-2] = 0
    table.to_csv("counts.csv")
    assert label(counts="counts.csv") == 0
    said = capsys.readouterr().out
    poor = int((table.iloc[:, :-2].sum(axis=1) < 10).sum())
    assert poor >= 7
    assert f"  no label, too few transcripts: {poor}\n" in said
    labels = pd.read_parquet("labels.parquet")
    left = labels.loc[labels["status"] != "labelled", "reason"].value_counts()
    for reason, count in left.items():
        assert f"  no label, {_REASONS[str(reason)]}: {count}\n" in said


def own_table(path: Path, slide: Slide) -> dict[str, str]:
    """Write a marker table of mast cells whose genes have names that no table knows; return the names."""
    names = {gene: f"PROBE{k}" for k, gene in enumerate(g for g in MAST if g in slide.counts.var_names)}
    assert len(names) >= 5
    rows = [f"Mast_Cell\t{name}\tpositive\tbreast\town data" for name in names.values()]
    path.write_text("# ours\ncell_type\tgene\tsign\torgans\tsource\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return names


def renamed(slide: Slide, names: dict[str, str]) -> None:
    table = pd.read_csv("counts.csv", index_col=0)
    table.rename(columns=names).to_csv("counts.csv")


def mast(slide: Slide) -> float:
    labels = pd.read_parquet("labels.parquet")
    return float((labels["cell_type"] == "Mast_Cell")[slide.truth.to_numpy() == "Mast"].mean())


def test_own_markers_add_a_type(folder: Path, slide: Slide) -> None:
    renamed(slide, own_table(folder / "own.tsv", slide))
    assert label(counts="counts.csv") == 0
    assert mast(slide) == 0
    assert label("--markers", "own.tsv", counts="counts.csv") == 0
    assert mast(slide) > 0.8


def test_own_markers_of_the_study_in_this_folder(folder: Path, slide: Slide) -> None:
    shutil.copytree(REPOSITORY / "config", folder / "config")
    renamed(slide, own_table(folder / "config/markers.tsv", slide))
    assert label(counts="counts.csv") == 0
    assert mast(slide) > 0.8


def test_settings_of_ones_own(folder: Path) -> None:
    Path("strict.yaml").write_text("labels:\n  min_confidence: 0.98\n", encoding="utf-8")
    assert label() == 0
    before = (pd.read_parquet("labels.parquet")["status"] == "labelled").sum()
    assert label("--configfile", "strict.yaml") == 0
    after = pd.read_parquet("labels.parquet")
    assert 0 < (after["status"] == "labelled").sum() < before
    assert after.loc[after["status"] == "labelled", "confidence"].min() >= 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--counts", "counts.h5ad", "--out", "labels.txt"],
            "--out is no file that can be written\n  found:      labels.txt\n  expected:   a .parquet or .csv file\n",
        ),
        (
            ["--counts", "counts.csv", "--out", "counts.csv"],
            "--out is the table of counts itself\n  found:      counts.csv\n  expected:   another file\n",
        ),
        (
            ["--counts", "counts.csv", "--out", "folder.csv"],
            "--out is a folder\n  found:      folder.csv\n  expected:   a .parquet or .csv file\n",
        ),
        (["--counts", "counts.csv", "--out", "counts.h5ad/labels.csv"], "--out lies in a file, not in a folder\n"),
        (
            ["--out", "labels.csv"],
            "One source of counts is wanted\n  found:      neither a bundle nor --counts\n"
            "  expected:   the folder of a bundle, or --counts FILE\n",
        ),
        (
            ["bundle", "--counts", "counts.csv", "--out", "labels.csv"],
            "One source of counts is wanted\n  found:      a ",
        ),
        (["bundle", "--out", "labels"], "The slide's table of cells is wanted with a bundle\n"),
        (
            ["--counts", "counts.csv", "--given", "x.csv", "--out", "labels.csv"],
            "Labels of others are compared with those of a bundle only\n  found:      --counts with --given\n",
        ),
        (
            ["--counts", "counts.csv", "--markers", "own.tsv", "--out", "labels.csv"],
            "--markers names no file\n  where:      own.tsv\n",
        ),
        (
            ["--counts", "none.csv", "--out", "labels.csv"],
            "The table of counts is missing\n  where:      none.csv\n  to mend it: check the path\n",
        ),
        (["--counts", "counts.h5ad", "--configfile", "none.yaml", "--out", "labels.csv"], "A file is missing\n"),
        (["--counts", "few.csv", "--out", "labels.csv"], "Too few cells are left to label\n  where:      few.csv\n"),
        (["--counts", "genes.csv", "--out", "labels.csv"], "The panel cannot tell cell types apart\n"),
        (["--counts", "mouse.csv", "--out", "labels.csv"], "The panel looks like one of another species\n"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    table = pd.read_csv("counts.csv", index_col=0)
    table.head(3).to_csv("few.csv")
    table[["CD3E", *(["TRAC"] if "TRAC" in table else []), "x_um", "y_um"]].assign(
        **{f"FOO{k}": 5 for k in range(9)}
    ).to_csv("genes.csv")
    table.rename(columns=lambda name: name if "_um" in name else name.capitalize()).to_csv("mouse.csv")
    Path("folder.csv").mkdir()
    before = sorted(path.name for path in folder.iterdir())
    assert main(["label", "--organ", "breast", *arguments]) == 1
    assert told(capsys).startswith(message)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_misspelt_organ(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        label(organ="brest")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "'brest' is not known. Did you mean 'breast'? Valid: breast, colon, heart" in error


def test_faults_of_an_own_table_are_told_with_file_and_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.tsv").write_text(
        "# notes\ncell_type\tgene\tsign\torgans\tsource\n\nT_Cells\tLCK\tpositive\t*\tme\nB_Cell\tX1\tup\t*\tme\n",
        encoding="utf-8",
    )
    assert label("--markers", "own.tsv") == 1
    error = told(capsys)
    assert error.startswith("The marker table has faults\n")
    assert "own.tsv, row 4: unknown cell type 'T_Cells'. Did you mean 'T_Cell'?" in error
    assert "own.tsv, row 5: sign 'up' is neither 'positive' nor 'negative'" in error
    assert "a type of your own needs an entry in the ontology first (key 'ontology')" in error


def test_help_explains_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    page = capsys.readouterr().out
    for column in LABEL_COLUMNS:
        assert column in page, column
    for word in ("--counts FILE", ".h5ad", ".parquet", "x_um", "micrometres", "nuclass label --counts counts.h5ad"):
        assert word in page
    assert max(len(line) for line in page.splitlines()) <= 120


def test_a_bundle_is_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_label_bundle(tmp_path, n=400)
    out = tmp_path / "labels"
    command = ["label", str(bundle.folder), "--cells", str(bundle.cells_file), "--organ", "breast", "--out", str(out)]
    assert main(command) == 0
    assert {*FILES, "panel.csv"} <= {path.name for path in out.iterdir()}
    printed = capsys.readouterr().out
    assert printed.startswith("400 cells: ")
    assert printed.endswith(f"Wrote {out}.\n")
    assert main([*command, "--labels", "given"]) == 1
    assert told(capsys).startswith("A slide's labels are to be given, and there is no file of them\n")
