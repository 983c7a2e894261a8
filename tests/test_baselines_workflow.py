"""The baselines in the workflow: which jobs there are, what they ask for, and what a changed setting makes again."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nuclass.core.config import load_study, merge_files
from test_workflow import REPOSITORY, copy, snakemake

__all__ = ["copy"]
NAMES = ("plip", "loki", "musk", "uni2_h", "dinov3")
SNAKEMAKE_MB = 400
GOALS = [f"results/predictions/{name}_{head}/ovary_h.parquet" for name in NAMES for head in ("linear", "finetuned")]
PAPER = ("--configfile", "config/paper.yaml")


def counts(told: str) -> dict[str, int]:
    """Return the jobs of a dry run by rule."""
    table = told.split("Job stats:")[-1].split("total")[0]
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@pytest.mark.workflow
def test_the_demo_makes_all_ten_in_few_jobs(copy):
    done = snakemake("-n", "--", *GOALS, folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    found = counts(done.stdout)
    assert {name: n for name, n in found.items() if "baseline" in name or "stand_in" in name} == {
        "embed_stand_ins": 1,
        "train_stand_ins_linear": 1,
        "train_baseline_finetuned": 5,
        "predict_stand_ins": 1,
    }


@pytest.mark.workflow
def test_the_real_study_makes_all_ten_each_on_a_gpu_of_its_own(copy):
    done = snakemake("-n", *PAPER, "--", *GOALS, folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    found = counts(done.stdout)
    assert found["embed_baseline"] == 5 * 11
    assert found["train_baseline_linear"] == found["train_baseline_finetuned"] == 5
    assert found["predict_baseline"] == found["predict_baseline_linear"] == 5
    assert not any("stand_in" in name for name in found)
    for name in NAMES:
        assert f"Fine-tuning the network of {name} with a linear layer" in done.stdout


@pytest.mark.workflow
def test_a_network_can_be_left_out_and_a_stand_in_can_stand_for_one_alone(copy):
    file = copy / "config/models/path_baselines.yaml"
    text = file.read_text(encoding="utf-8")
    start, end = text.index("musk:"), text.index("uni2_h:")
    text = text[:start] + text[end:]
    file.write_text(text.replace("stand_in: false", "stand_in: true", 1), encoding="utf-8")
    goals = [goal for goal in GOALS if "musk" not in goal]
    done = snakemake("-n", *PAPER, "--", *goals, folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    found = counts(done.stdout)
    assert found["embed_stand_ins"] == found["predict_stand_ins"] == found["train_stand_ins_linear"] == 1
    assert found["embed_baseline"] == 3 * 11
    assert found["train_baseline_linear"] == 3
    assert found["train_baseline_finetuned"] == 4
    assert found["predict_baseline"] == 3
    assert found["predict_baseline_linear"] == 3
    assert snakemake("-n", *PAPER, "--", GOALS[4], folder=copy).returncode != 0


@pytest.mark.workflow
def test_a_misspelt_baseline_stops_the_workflow_with_file_and_line(copy):
    file = copy / "config/models/path_baselines.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    number = lines.index("musk:")
    lines[number] = "muks:"
    file.write_text("\n".join(lines), encoding="utf-8")
    done = snakemake("-n", *PAPER, "--", GOALS[0], folder=copy)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "'musk'" in told
    assert f"path_baselines.yaml, line {number + 1}" in told


def rules_for(models: str, **trainer: object) -> dict[str, Any]:
    """Return the functions of the rules file for a model file, with other values in the trainer of fine-tuning."""
    names = [Path("config/config.yaml")]
    study = load_study({**merge_files(names, REPOSITORY), "models": models}, REPOSITORY, names)
    study.models["baselines"]["finetuned"]["trainer"].update(trainer)
    section = study.models["baselines"]
    stand_ins = [name for name in NAMES if section[name]["stand_in"]]
    scope: dict[str, Any] = {
        "CONFIG": study.config,
        "BASELINE_CONFIG": section,
        "TUNING": section["finetuned"]["trainer"],
        "STAND_INS": stand_ins,
        "STUDY_SCALE": {"cache_mb": 64},
        "sections": lambda *others, stages: dict.fromkeys(others, 6),
        "rows_of": lambda files: 10,
        "SNAKEMAKE_MB": SNAKEMAKE_MB,
        "readers_mem": lambda settings: settings["workers"] * (500 + 64),
    }
    text = (REPOSITORY / "rules/networks.smk").read_text(encoding="utf-8")
    exec(text[text.index("def baseline_sections") :], scope)
    return scope


def test_jobs_read_only_their_own_settings():
    """So that another strength of the penalty does not fine-tune the networks again."""
    rules = rules_for("config/models/demo.yaml")
    found = rules["baseline_sections"](["musk"], "finetuned")
    assert set(found["baselines"]) == {"musk", "finetuned", "read_level", "seed"}
    assert set(rules["baseline_sections"](["plip"], "features", others=["predict"])) == {"baselines", "predict"}


def test_published_networks_ask_for_gpus_and_stand_ins_for_none():
    demo, paper = rules_for("config/models/demo.yaml"), rules_for("config/models/paper.yaml")
    assert demo["STAND_INS"] == list(NAMES)
    assert paper["STAND_INS"] == []
    for part in ("features", "finetuned"):
        assert demo["baseline_gpus"](["plip"], part) == 0
        assert paper["baseline_gpus"](["plip"], part) == 1
    several = rules_for("config/models/paper.yaml", devices=[0, 1])
    assert several["baseline_gpus"](["musk"], "finetuned", several["tuning_processes"]()) == 2
    on_cpu = rules_for("config/models/paper.yaml", accelerator="cpu")
    assert on_cpu["baseline_gpus"](["musk"], "finetuned") == 0
    wanted = rules_for("config/models/demo.yaml", accelerator="gpu")
    assert wanted["baseline_gpus"](["musk"], "finetuned") == 1


def test_memory_for_fine_tuning_grows_with_readers_and_windows():
    wildcards, inputs = SimpleNamespace(baseline="musk"), SimpleNamespace(cells=[])
    small = rules_for("config/models/demo.yaml")["tuning_mem"](wildcards, inputs, 1)
    assert small == pytest.approx(SNAKEMAKE_MB + 2500 + 10 * 3e-6 * 80**2, abs=2)
    large = rules_for("config/models/paper.yaml")["tuning_mem"]
    first = 16000 + 10 * 3e-6 * 384**2 + 16 * 564
    assert large(wildcards, inputs, 1) == pytest.approx(SNAKEMAKE_MB + first, abs=2)
    assert large(wildcards, inputs, 2) == large(wildcards, inputs, 5) == pytest.approx(SNAKEMAKE_MB + 2 * first, abs=2)
