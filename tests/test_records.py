"""Curves of training, time and memory of jobs, and the table of settings."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from nuclass.core.amounts import duration, memory, time_scale
from nuclass.core.config import load_settings
from nuclass.core.errors import UserError
from nuclass.core.files import write_json
from nuclass.core.models_file import read_complete
from nuclass.evaluation.usage import TOTAL, read_benchmark, read_usage, summarise_usage
from nuclass.figures.resources import draw_resources
from nuclass.figures.training import draw_training, read_curve
from nuclass.tables.hyperparameters import ELSEWHERE, STUDY_SECTIONS, hyperparameters, read_parameters, told
from nuclass.tables.layout import to_markdown
from nuclass.tables.runtime import runtime, training_costs

ROOT = Path(__file__).parents[1]
LOOK = {"style": ROOT / "resources" / "style" / "nuclass.mplstyle", "synthetic": True}
WORDS = ROOT / "resources" / "parameters.tsv"
SCHEMA = ROOT / "config" / "schemas" / "models.schema.yaml"
HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time"
STAGES = {"Slides": ["build_slide", "align_slide"], "Training": ["train_local"], "Prediction": ["predict"]}
JOBS = ["ovary_1", "lung_1", "all"]


def write_benchmark(path: Path, *rows: tuple[object, object, object]) -> None:
    """Write rows of wall time, memory and CPU time as Snakemake does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{wall}\t0:00:00\t{rss}\t1.0\t1.0\t1.0\t0.0\t0.0\t50.0\t{cpu}" for wall, rss, cpu in rows]
    path.write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "benchmarks"
    write_benchmark(made / "build_slide" / "ovary_1.tsv", (10.0, 512.0, 5.0))
    write_benchmark(made / "build_slide" / "lung_1.tsv", (30.0, 256.0, 40.0))
    write_benchmark(made / "build_slide" / "old_slide.tsv", (9999.0, 9999.0, 9999.0))
    write_benchmark(made / "align_slide" / "ovary_1.tsv", (0.4, "NA", "NA"))
    write_benchmark(made / "train_local" / "all.tsv", (100.0, 2048.0, 190.0))
    write_benchmark(made / "other_rule" / "all.tsv", (9999.0, 9999.0, 9999.0))
    return made


def test_times_and_memory_as_text() -> None:
    seconds = [0.44, 9.96, 12.3, 59.6, 119.7, 185, 3599.6, 7620, 48 * 3600 + 5, 273600]
    shown = ["0.4 s", "10 s", "12 s", "1 min 00 s", "2 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 07 min"]
    assert [duration(value) for value in seconds] == [*shown, "2 d 00 h", "3 d 04 h"]
    assert [memory(value) for value in (584.4, 1024, 5000)] == ["584 MiB", "1.0 GiB", "4.9 GiB"]
    assert duration(math.nan) == memory(math.nan) == "–"
    assert [time_scale(value)[1] for value in (100, 500, 8000, 3e5)] == ["s", "min", "h", "days"]


def test_a_benchmark_file(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "repeated.tsv", (2.0, 100.0, 1.0), (3.0, 300.0, 1.5))
    assert read_benchmark(tmp_path / "repeated.tsv") == {"seconds": 5.0, "cpu_seconds": 2.5, "peak_mib": 300.0}
    write_benchmark(tmp_path / "short.tsv", (0.2, "NA", "-"))
    short = read_benchmark(tmp_path / "short.tsv")
    assert short is not None
    assert short["seconds"] == 0.2
    assert math.isnan(short["cpu_seconds"])
    assert math.isnan(short["peak_mib"])


@pytest.mark.parametrize("text", ["", HEAD + "\n", "s\tmax_rss\n1.0\n", HEAD + "\nsoon\n", "\x00\xff", HEAD + "\n1.0"])
def test_a_broken_benchmark_file_is_told_and_left_out(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "b.tsv"
    path.write_bytes(text.encode("latin-1"))
    assert read_benchmark(path) is None
    assert str(path) in caplog.text


def test_usage_counts_the_study_s_own_jobs(folder: Path) -> None:
    usage = read_usage(folder, STAGES, JOBS)
    assert set(usage["job"]) == {"ovary_1", "lung_1", "all", ""}
    assert usage.loc[usage["job"] == "", "rule"].tolist() == ["predict"]
    stages = summarise_usage(usage).set_index("stage")
    assert stages.index.tolist() == ["Slides", "Training", "Prediction", TOTAL]
    slides = stages.loc["Slides"]
    assert slides["jobs"] == 3
    assert slides["seconds"] == pytest.approx(10 + 30 + 0.4)
    assert slides[["longest_seconds", "longest_job"]].tolist() == [30, "build_slide/lung_1"]
    assert slides["sampled"] == 2
    assert slides["cpu_seconds"] == 45
    assert slides["cores"] == pytest.approx(45 / 40)
    assert slides[["peak_mib", "peak_job"]].tolist() == [512, "build_slide/ovary_1"]
    total = stages.loc[TOTAL]
    assert total["jobs"] == 4
    assert total["seconds"] == pytest.approx(140.4)
    assert total["cores"] == pytest.approx(235 / 140)
    assert total["missing"] == "predict"
    assert stages.loc["Prediction", "jobs"] == 0
    assert math.isnan(stages.loc["Prediction", "seconds"])


def write_usage(benchmarks: Path, out: Path) -> tuple[Path, Path]:
    usage = read_usage(benchmarks, STAGES, JOBS)
    usage.to_csv(out / "jobs.csv", index=False)
    summarise_usage(usage).to_csv(out / "stages.csv", index=False)
    return out / "jobs.csv", out / "stages.csv"


def test_resources_figure(folder: Path, tmp_path: Path) -> None:
    files = write_usage(folder, tmp_path)
    draw_resources(*files, [tmp_path / "r.pdf", tmp_path / "r.png"], tmp_path / "r.csv", **LOOK)
    numbers = pd.read_csv(tmp_path / "r.csv", keep_default_na=False, na_values={"seconds": "", "peak_mib": ""})
    stages, jobs = numbers[numbers["job"] == ""], numbers[numbers["job"] != ""]
    assert dict(zip(stages["stage"], stages["jobs"], strict=True)) == {
        "Slides": 3,
        "Training": 1,
        "Prediction": 0,
        TOTAL: 4,
    }
    assert jobs["seconds"].sum() == pytest.approx(140.4)
    assert jobs["peak_mib"].max() == 2048
    with Image.open(tmp_path / "r.png") as image:
        assert image.width == pytest.approx(183 / 25.4 * 300, abs=2)


@pytest.mark.parametrize("jobs", [0, 1])
def test_resources_figure_of_little(jobs: int, tmp_path: Path) -> None:
    if jobs:
        write_benchmark(tmp_path / "benchmarks" / "train_local" / "all.tsv", (0.0, "NA", "NA"))
    files = write_usage(tmp_path / "benchmarks", tmp_path)
    draw_resources(*files, [tmp_path / "r.svg"], tmp_path / "r.csv", **LOOK)
    text = (tmp_path / "r.svg").read_text()
    assert ("not measured" if jobs else "No job left a benchmark file") in text


def history(**columns: list[float]) -> pd.DataFrame:
    rows = len(columns["step"])
    spent = {"train_seconds": [4.0] * rows, "train_cells": [200] * rows, "memory_mb": [1500.0 + i for i in range(rows)]}
    return pd.DataFrame({"epoch": range(rows), "seconds": [5.0 * (i + 1) for i in range(rows)], **spent, **columns})


@pytest.fixture
def trainings(tmp_path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Metrics and histories of a context backbone, a local model and a gate in two phases."""
    context = history(step=[10, 20], train_loss=[5.0, 4.0], val_loss=[5.5, 4.5], learning_rate=[1e-3, 0])
    local = history(
        step=[8, 16, 24],
        train_loss=[2.0, 1.0, 0.9],
        val_loss=[2.1, 1.2, 1.3],
        val_f1_macro=[0.3, 0.7, 0.6],
        val_accuracy=[0.4, 0.6, 0.6],
        learning_rate=[1e-3, 1e-3, 1e-4],
    )
    alone = history(step=[6, 12], train_loss=[1.0, 0.9], val_log_loss=[0.6, 0.5], learning_rate=[1e-3, 1e-3])
    joint = history(step=[5, 10], train_loss=[0.9, 0.8], val_log_loss=[0.45, 0.48], learning_rate=[1e-4, 1e-4])
    gate = pd.concat([alone.assign(phase="gate"), joint.assign(phase="joint")])
    metrics = {name: tmp_path / f"{name}.json" for name in ("context", "local", "gate")}
    histories = {name: tmp_path / f"{name}.csv" for name in ("local", "gate")}
    write_json(
        metrics["context"],
        {"best": {"epoch": 1, "step": 20}, "history": context.to_dict("records"), "parameters": 9, "n_train": 500},
    )
    best = {"epoch": 1, "step": 16}
    write_json(
        metrics["local"], {"best": best, "parameters": 12345, "n_train": 200, "seconds_per_epoch": 4.2, "seconds": 1.0}
    )
    kept = {"best": {"phase": "joint", "epoch": 0, "step": 5}, "val": {"f1_macro": 0.625}}
    write_json(metrics["gate"], kept | {"parameters": 77, "n_fit": 60})
    local.to_csv(histories["local"], index=False)
    gate.to_csv(histories["gate"], index=False)
    return metrics, histories


def test_training_figure(trainings: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path) -> None:
    draw_training(*trainings, [tmp_path / "t.svg", tmp_path / "t.png"], tmp_path / "t.csv", **LOOK)
    numbers = pd.read_csv(tmp_path / "t.csv")
    assert numbers.groupby("model", sort=False).size().to_dict() == {"context": 2, "local": 3, "gate": 4}
    chosen = numbers[numbers["chosen"]].set_index("model")
    assert chosen["epoch"].to_dict() == {"context": 2, "local": 2, "gate": 1}
    assert chosen.loc["local", "val_f1_macro"] == 0.7
    assert chosen.loc["gate", "val_log_loss"] == 0.45
    assert chosen.loc["gate", "val_f1_macro"] == 0.625
    assert numbers.loc[numbers["model"] == "gate", "val_f1_macro"].notna().sum() == 1
    # The second phase goes on where the first one ends.
    assert numbers.loc[numbers["model"] == "gate", "x"].tolist() == [6, 12, 17, 22]
    text = (tmp_path / "t.svg").read_text()
    for words in ("kept: epoch 2 of 3, step 16", "kept: joint epoch 1 of 2, step 5", "macro-F1", "Not measured"):
        assert words in text
    assert ">macro-F1, kept state<" in text
    # The context backbone in the first column has no score; the row is named all the same.
    for row in ("Training loss", "Validation loss", "Validation score", "Learning rate"):
        assert f">{row}<" in text
    with Image.open(tmp_path / "t.png") as image:
        assert image.width == pytest.approx(183 / 25.4 * 300, abs=2)


def test_training_figure_without_history(trainings: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path) -> None:
    metrics, histories = trainings
    histories["local"].write_text("")
    histories["gate"].write_text("epoch,step,train_loss\n")
    missing = {"global": tmp_path / "none.json"}
    draw_training(metrics | missing, histories, [tmp_path / "t.svg"], tmp_path / "t.csv", **LOOK)
    assert (tmp_path / "t.svg").read_text().count("No history kept") == 12
    assert set(pd.read_csv(tmp_path / "t.csv")["model"]) == {"context"}
    draw_training({}, {}, [tmp_path / "t.svg"], tmp_path / "t.csv", **LOOK)
    assert "No model was trained" in (tmp_path / "t.svg").read_text()


def test_a_history_of_another_run(trainings: tuple[dict[str, Path], dict[str, Path]]) -> None:
    metrics, histories = trainings
    with pytest.raises(UserError, match="not in its history"):
        read_curve(metrics["local"], histories["gate"])


def test_the_kept_state_is_one_of_its_phase(tmp_path: Path) -> None:
    rows = pd.concat([history(step=[5, 10]).assign(phase=phase) for phase in ("gate", "joint")])
    rows.to_csv(tmp_path / "h.csv", index=False)
    for phase, place in (("gate", 1), ("joint", 3)):
        write_json(tmp_path / "m.json", {"best": {"phase": phase, "step": 10}})
        assert read_curve(tmp_path / "m.json", tmp_path / "h.csv").chosen == place


def test_costs_of_training(trainings: tuple[dict[str, Path], dict[str, Path]]) -> None:
    costs = training_costs(*trainings).set_index("model")
    assert costs["epochs"].to_dict() == {"context": 2, "local": 3, "gate": 4}
    # To the last validation, over both phases of the gate; not the seconds of the last run alone.
    assert costs["seconds"].to_dict() == {"context": 10, "local": 15, "gate": 20}
    assert costs["seconds_per_epoch"].to_dict() == {"context": 4, "local": 4.2, "gate": 4}
    assert costs["cells_per_second"].tolist() == [50, 50, 50]
    assert costs["recorded_mb"].to_dict() == {"context": 1501, "local": 1502, "gate": 1501}
    assert costs["cells"].to_dict() == {"context": 500, "local": 200, "gate": 60}


def test_runtime_table(folder: Path, trainings: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path) -> None:
    stages = write_usage(folder, tmp_path)[1]
    table = runtime(stages, *trainings)
    text = to_markdown(table)
    assert "| Slides | 3 | 40 s | 30 s (build_slide lung_1) | 45 s | 1.1 | 512 MiB (build_slide ovary_1) |" in text
    assert "| Prediction | 0 | – | – | – | – | – |" in text
    assert (
        "| **total** | 4 | 2 min 20 s | 1 min 40 s (train_local) | 3 min 55 s | 1.7 | 2.0 GiB (train_local) |" in text
    )
    assert "| Local | 12,345 | 200 | 3 | 15 s | 4.2 s | 50 | 1.50 GB |" in text
    assert "Without a benchmark file, so not in these numbers: predict." in text
    assert "Baselines, ablations and the audit are not counted, nor in the total." in text
    assert table.data.groupby("part").size().to_dict() == {"stage": 4, "training": 3}


def test_runtime_table_without_history(
    folder: Path, trainings: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path
) -> None:
    metrics, histories = trainings
    histories["local"].write_text("")
    stages = write_usage(folder, tmp_path)[1]
    assert "| Local | 12,345 | 200 | – | – | – | – | – |" in to_markdown(runtime(stages, metrics, histories))


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    models = {name: read_complete(ROOT / "config" / "models" / f"{name}.yaml", SCHEMA) for name in ("demo", "paper")}
    return {"config": load_settings(["config/config.yaml"], ROOT), **models}


def test_a_fault_of_the_real_study_s_models_is_told(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("local: {optimizer: {lr_heads: 1}}")
    with pytest.raises(UserError, match="lr_heads"):
        read_complete(tmp_path / "models.yaml", SCHEMA)


def laid(settings: dict[str, Any], models: str) -> Any:
    files = {"file": f"config/models/{models}.yaml", "paper_file": "config/models/paper.yaml"}
    return hyperparameters(settings["config"], settings[models], settings["paper"], WORDS, **files)


def test_settings_table(settings: dict[str, Any]) -> None:
    table = laid(settings, "demo")
    data = table.data.set_index(["part", "model", "key"])
    demo, paper = (
        yaml.safe_load((ROOT / "config" / "models" / name).read_text()) for name in ("demo.yaml", "path_local.yaml")
    )
    row = data.loc[("models", "local", "optimizer.lr_backbone")]
    assert float(row["value"]) == demo["local"]["optimizer"]["lr_backbone"]
    assert float(row["paper"]) == paper["optimizer"]["lr_backbone"]
    assert row["differs"]
    assert not data.loc[("models", "gate", "seed"), "differs"]
    # The real study's backbone is given, so there is nothing to compare the demo's own pretraining with.
    assert not data.xs("pretrain", level="model")["differs"].any()
    text = to_markdown(table)
    assert "| Learning rate of the network | 0.001 | 0.003 (3e-6) | 0.0005 (2e-6) | – |" in text
    assert "| Side of the global window, px | 1024 |" in text
    assert "config/models/demo.yaml" in text
    assert "corrected (no flaw of the original is on)" in text


def test_settings_of_the_real_study_differ_from_nothing(settings: dict[str, Any]) -> None:
    table = laid(settings, "paper")
    assert not table.data["differs"].any()
    assert "pretrain" not in set(table.data["model"])


def test_every_setting_has_words(settings: dict[str, Any]) -> None:
    words = read_parameters(WORDS)
    known = set(zip(words["part"], words["key"], strict=True))
    schema = yaml.safe_load(SCHEMA.read_text())["properties"]
    wanted = {("predict", key) for key in keys(schema["predict"])}
    for section in ("context", "local", "global", "gate"):
        found = {key.removeprefix("pretrain.") for key in keys(schema[section])}
        wanted |= {("models", key) for key in found - set(ELSEWHERE) - {"backbone", "pretrain"}}
    study = yaml.safe_load((ROOT / "config" / "schemas" / "config.schema.yaml").read_text())["properties"]
    for section in STUDY_SECTIONS:
        wanted |= {("study", f"{section}.{key}".removesuffix(".")) for key in keys(study[section])}
    assert wanted - known == set()
    assert {both for both in known - wanted if not both[1].startswith("backbone.")} == set()
    assert not laid(settings, "demo").data["group"].eq("Other").any()


def keys(schema: dict[str, Any], before: str = "") -> list[str]:
    """Return the dotted keys of a schema; an empty one for a single value."""
    options = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])]
    inner = next((part["properties"] for part in options if "properties" in part), None)
    if inner is None:
        return [before.removesuffix(".")]
    return [key for name, part in inner.items() for key in keys(part, f"{before}{name}.")]


def test_settings_without_words_are_still_shown(settings: dict[str, Any]) -> None:
    models = copy.deepcopy(settings["demo"])
    models["local"]["new_setting"] = 5
    config = settings["config"] | {"protocol": {"no_buffer": True}}
    data = hyperparameters(config, models, settings["paper"], WORDS, file="a", paper_file="b").data
    row = data[data["key"] == "new_setting"].iloc[0]
    assert row[["group", "parameter", "value", "paper", "differs"]].tolist() == ["Other", "new_setting", "5", "", True]
    assert data.loc[data["part"] == "protocol"].set_index("key")["value"].value_counts().to_dict() == {
        "no": 20,
        "yes": 1,
    }


def test_settings_as_text() -> None:
    values = [True, None, [], 3e-6, 0.25, 1024, 20251113, [40.0, 112.0], {"a": [1, 2], "b": None}]
    shown = ["yes", "", "", "3e-6", "0.25", "1024", "20,251,113", "40, 112", "a [1, 2], b none"]
    assert [told(value) for value in values] == shown


@pytest.mark.workflow
def test_every_job_of_the_core_study_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--nolock", "-n", "--forceall", "core"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = set(re.findall(r"^(\w+) +\d+$", done.stdout, re.MULTILINE)) - {"total", "core"}
    text = (ROOT / "rules" / "records.smk").read_text()
    figures = (ROOT / "rules" / "collect.smk").read_text()
    named = {rule for rule in ran if re.search(rf'"{rule}"', text)}
    drawn = {rule for rule in ran - named if re.match("draw_|tabulate_", rule)}
    assert ran - named - drawn == set()
    # The rule of a figure or table is found by its name.
    for rule in drawn:
        assert re.search(rf'[" ]{rule.split("_", 1)[1]}[" ]', figures), rule
