"""What a change makes run again: the jobs that use what has changed and those behind them, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drawn_slide import draw_slide
from slide_example import write_output

REPOSITORY = Path(__file__).parent.parent
PARTS = ("config", "resources", "rules", "scripts", "src", "workflow", "profiles", "envs")
ROW = "lung_1\tlung\ttrain\tlung_donor_1\tlocal\t\tlung\t\t\t\tgiven_then_markers\tconfig/given.csv"
TABLE = pa.table({"cell_id": ["a-1"], "class": ["T_Cell"]})
pytestmark = pytest.mark.workflow


def run(study: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    command = [sys.executable, "-m", "snakemake", *arguments]
    done = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo study with all goals done: files that only Snakemake takes for results, noted by itself as made."""
    folder = tmp_path_factory.mktemp("finished")
    for name in PARTS:
        skipped = shutil.ignore_patterns("bundles", "truth", "__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skipped)
    drawn = draw_slide(shape=(600, 700), seed=3)
    write_output(folder / "lung", drawn, alignment=drawn.frames.alignment)
    (folder / "config/given.csv").write_text("cell_id,label\na-1,T cell\n", encoding="utf-8")
    change(folder / "config/slides.tsv", "lung_1\tlung\ttrain\tlung_donor_1\tsynthetic\t\t\t\t\t\t\t", ROW)
    listed = run(folder, "--summary", "all").splitlines()
    for name in (line.split("\t")[0] for line in listed if "\t" in line and not line.startswith("output_file")):
        file = folder / name / "zarr.json" if not Path(name).suffix or name.endswith(".zarr") else folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            pq.write_table(TABLE, file)
        else:
            file.write_text("done", encoding="utf-8")
    run(folder, "--touch", "--forceall", "--cores", "1", "all")
    return folder


@pytest.fixture
def study(finished: Path) -> Iterator[Path]:
    """The finished study; what a test changes of its settings, code and sheets is put back."""
    before = {path: path.read_bytes() for name in PARTS for path in (finished / name).rglob("*") if path.is_file()}
    yield finished
    for path in (path for name in PARTS for path in (finished / name).rglob("*") if path.is_file()):
        if path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{file.name} does not hold {old!r}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def jobs(study: Path, *arguments: str) -> tuple[dict[str, int], set[str]]:
    """Return the jobs of a dry run by rule, and the rules that run for a reason of their own."""
    told = run(study, "-n", *arguments, "all")
    counts = {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", told, re.MULTILINE)}
    counts.pop("total", None)
    reasons = told.partition("\nReasons:")[2]
    own = set()
    for match in re.finditer(r"^    (\S.*):\n        (.*)$", reasons, re.MULTILINE):
        if "updated by another job" not in match[1]:
            own.update(re.findall(r"\w+", match[2]))
    return counts, own - {"all"}


NOTHING: tuple[dict[str, int], set[str]] = ({}, set())
CODE = [
    ("figures/embedding_map.py", {"draw_umap", "draw_film_vs_concat"}),
    ("training/gate.py", {"train_gate", "train_gate_variant"}),
    ("splits/bands.py", {"split_cells", "split_cells_variant"}),
    ("xenium/download.py", set()),
    ("core/schema_words.py", set()),
]
ORDERED = "holdout_comparison dataset panels label_agreement complementarity gate".split()
TRAININGS = {"pretrain_context", "train_local", "train_global", "train_gate", "train_stand_ins_linear"}


def test_a_second_run_does_nothing(study: Path) -> None:
    assert jobs(study) == NOTHING


@pytest.mark.parametrize(("name", "expected"), CODE, ids=[name for name, _ in CODE])
def test_a_changed_function_of_the_library_runs_what_uses_it(study: Path, name: str, expected: set[str]) -> None:
    path = study / "src/nuclass" / name
    path.write_text(path.read_text(encoding="utf-8") + "\n\nCHANGED = 1\n", encoding="utf-8")
    counts, own = jobs(study)
    assert own == expected
    if name.startswith("figures"):
        assert counts == {"draw_umap": 1, "draw_film_vs_concat": 1, "render_report": 1, "all": 1}
    if name.startswith("training"):
        assert not counts.keys() & {"train_local", "train_global", "embed_context", "split_cells", "label_cells"}
        assert counts["predict"] == 8
    if name.startswith("splits"):
        assert not counts.keys() & {"label_cells", "build_slide", "simulate_bundle"}
        assert counts.keys() >= TRAININGS
    if not expected:
        assert counts == {}, "another way to download, or to say what is wrong, makes nothing again"


def test_a_changed_script_runs_its_rule(study: Path) -> None:
    change(
        study / "scripts/tabulate_splits.py", "with snakemake_job(snakemake):", "with snakemake_job(snakemake):\n    0"
    )
    behind = "measure_usage record_provenance draw_resources tabulate_runtime render_report all".split()
    assert jobs(study) == (dict.fromkeys(["tabulate_splits", *behind], 1), {"tabulate_splits"})


def test_what_changes_no_result_runs_nothing(study: Path) -> None:
    """Comments, texts, version, threads, memory, limits, messages, order, environments, profiles, times of files."""
    for path in [*(study / "src").rglob("*.py"), *(study / "scripts").glob("*.py")]:
        path.write_text(path.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
    change(study / "src/nuclass/training/gate.py", "def train_gate(", '"""A text."""\n\n\ndef train_gate(')
    change(study / "src/nuclass/__init__.py", "__version__ = ", '__version__ = "9" + ')
    rules = study / "rules/train.smk"
    text = rules.read_text(encoding="utf-8")
    for old, new in (
        ("time=480", "time=1"),
        ("Training", "Now"),
        ("mem(3000)", "mem(9)"),
        ("priority: 3", "priority: 4"),
    ):
        assert old in text
        text = text.replace(old, new)
    rules.write_text(text, encoding="utf-8")
    change(study / "rules/labels.smk", "threads: ", "threads: 1 + ")
    for path in (study / "envs").glob("*.yaml"):
        path.write_text(path.read_text(encoding="utf-8") + "  - pyproj\n", encoding="utf-8")
    for path in (study / "profiles").rglob("*.yaml"):
        path.write_text(path.read_text(encoding="utf-8") + "# a comment\n", encoding="utf-8")
    change(study / "profiles/default/config.yaml", "keep-going: true", "keep-going: false")
    for name in PARTS:
        for path in (study / name).rglob("*"):
            if path.parts[len(study.parts)] != "resources" or (
                "bundles" not in path.parts and "truth" not in path.parts
            ):
                os.utime(path)
    asked = ("--cores", "7", "--set-threads", "train_local=5", "--set-resources", "predict:mem_mb=9", "--retries", "3")
    assert jobs(study, *asked) == NOTHING


def test_changed_labels_run_labelling_and_what_is_behind_it(study: Path) -> None:
    given = study / "config/given.csv"
    given.write_text("cell_id,label\na-1,B cell\n", encoding="utf-8")
    counts, own = jobs(study)
    assert own == {"label_cells"}
    assert counts["label_cells"] == counts["draw_labels"] == 1, "of the one slide that it belongs to"
    assert counts["split_cells"] == 1
    assert counts.keys() >= TRAININGS
    for name in ("simulate_bundle", "align_slide", "build_slide", "check_panel", "cut_explorer_tiles"):
        assert name not in counts


@pytest.mark.parametrize("name", ["markers/markers.tsv", "label_ontology.yaml"])
def test_changed_markers_and_classes_run_the_labels_of_all_slides(study: Path, name: str) -> None:
    file = study / "resources" / name
    file.write_text(file.read_text(encoding="utf-8") + "# a note\n", encoding="utf-8")
    counts, own = jobs(study)
    assert own >= {"label_cells"}
    assert counts["label_cells"] == 8
    assert not counts.keys() & {"simulate_bundle", "align_slide", "build_slide", "cut_explorer_tiles"}


def test_another_order_of_the_classes_runs_the_tables_and_figures_that_name_classes(study: Path) -> None:
    sheet = study / "resources/classes.tsv"
    head, *rows = sheet.read_text(encoding="utf-8").splitlines()
    sheet.write_text("\n".join([head, *reversed(rows), ""]), encoding="utf-8")
    counts, own = jobs(study)
    assert {name for name in own if name.startswith("tabulate")} == {f"tabulate_{name}" for name in ORDERED}
    assert own >= {"draw_dataset_composition", "draw_gate", "draw_labelling"}
    assert not counts.keys() & {*TRAININGS, "label_cells", "split_cells", "predict"}


def test_a_changed_row_of_the_sheet_runs_that_slide(study: Path) -> None:
    change(study / "config/slides.tsv", ROW, ROW.replace("\tgiven_then", "refine\tgiven_then"))
    counts, own = jobs(study)
    assert own == {"fetch_bundle"}
    for name in ("fetch_bundle", "align_slide", "check_alignment", "build_slide", "label_cells"):
        assert counts[name] == 1, name
    assert "simulate_bundle" not in counts


def test_a_changed_setting_of_the_gate_runs_the_gate_and_what_is_behind_it(study: Path) -> None:
    models = study / "config/models/demo.yaml"
    text = models.read_text(encoding="utf-8")
    start = text.index("\ngate:")
    models.write_text(text[:start] + text[start:].replace("lr: 1.0e-3", "lr: 2.0e-3", 1), encoding="utf-8")
    counts, own = jobs(study)
    assert own == {"train_gate", "train_gate_variant", "tabulate_hyperparameters", "draw_pipeline"}
    assert counts["train_gate"] == 1
    assert counts["predict"] == 8
    assert not counts.keys() & {"train_local", "train_global", "pretrain_context", "embed_context", "label_cells"}


def test_a_copy_with_its_times_runs_nothing(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "elsewhere", symlinks=True)
    assert jobs(tmp_path / "elsewhere") == NOTHING
