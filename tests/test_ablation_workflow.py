"""Ablations and audit in the workflow: what they train, and what they share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from test_workflow import copy, snakemake

__all__ = ["copy"]
pytestmark = pytest.mark.workflow


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """Return how many jobs of each rule a dry run plans."""
    done = snakemake("-n", *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}


def test_a_switch_of_the_gate_trains_a_gate_alone(copy: Path) -> None:
    """Beside it: the reference, two more seeds, and released, whose slides, splits, features and models are its own."""
    asked = "ablations={switches: [gate_on_train]}"
    jobs = planned(copy, "--config", asked, "--", "audit")
    assert jobs["train_local_variant"] == 1 + 2 + 1
    assert jobs["train_global_variant"] == 1 + 2 + 1
    assert jobs["train_gate_variant"] == 1 + 2 + 1 + 1
    assert jobs["predict_variant"] == 1 + 2 + 1 + 1
    assert jobs["build_slide_variant"] == jobs["split_cells_variant"] == 8
    assert "predict_local_variant" not in jobs
    assert "compare_fusions" not in jobs, "the safety policy is not asked for"


def test_the_demo_trains_no_variant_and_no_baseline(copy: Path) -> None:
    jobs = planned(copy, "--", "demo")
    assert not [name for name in jobs if name.endswith("_variant") or "baseline" in name]
    assert jobs["train_local"] == jobs["render_report"] == 1


def test_all_holds_every_comparison_of_the_paper_study(copy: Path) -> None:
    jobs = planned(copy, "--configfile", "config/paper.yaml", "--", "all")
    assert jobs["train_baseline_linear"] == jobs["train_baseline_finetuned"] == 5
    assert jobs["judge_left_out"] == 3
    assert jobs["train_global_variant"] >= 15
    for name in ("audit_protocol", "compare_embeddings", "compare_fusions", "count_complementarity", "describe_gate"):
        assert jobs[name] == 1
    for name in (
        "holdout_comparison",
        "paper_comparison",
        "gate_ablation",
        "film_vs_concat",
        "left_out",
        "uncertainty_guidance",
        "context_sizes",
        "seeds",
        "audit",
    ):
        assert jobs[f"tabulate_{name}"] == 1


def test_a_study_of_one_organ_still_plans(copy: Path) -> None:
    """One training organ: none can be left out, and the table says so."""
    sheet = copy / "config/slides.tsv"
    lines = sheet.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.startswith(("slide", "ovary_1", "ovary_h"))]
    sheet.write_text("\n".join(kept) + "\n", encoding="utf-8")
    jobs = planned(copy, "--", "ablations")
    assert "judge_left_out" not in jobs
    assert jobs["tabulate_left_out"] == 1


def test_test_cells_make_the_flaw_act_that_needs_them(copy: Path) -> None:
    """As docs/ablations.md says: without ``splits.test`` it trains nothing."""
    asked = "ablations={switches: [test_as_val, unguarded_class_weights]}"
    jobs = planned(copy, "--config", asked, "splits={test: 0.1}", "--", "audit")
    # The reference, two more seeds, the flaw, and all of them; a class without train cells is part of the last.
    for model in ("local", "global", "gate"):
        assert jobs[f"train_{model}_variant"] == 1 + 2 + 1 + 1


def test_an_organ_that_nothing_tells_of_is_named_without_a_traceback(copy: Path) -> None:
    """Colon has one slide, and its patient was trained on with another organ."""
    sheet = copy / "config/slides.tsv"
    text = sheet.read_text(encoding="utf-8")
    sheet.write_text(text.replace("colon_donor_1", "lung_donor_1"), encoding="utf-8")
    done = snakemake("-n", "--config", "ablations={leave_out: [colon]}", "--", "ablations", folder=copy)
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert "No slide tells how models without an organ do on it" in told
    assert "ablations.leave_out: colon" in told
    assert "leave another organ out" in told
    assert "Traceback" not in told
    assert ".smk" not in told
    done = snakemake("-n", "--config", "ablations={leave_out: [lung]}", "--", "ablations", folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = "results/evaluation/ablations/without_lung.json"
    done = snakemake("-n", "--config", "ablations={leave_out: [lung]}", "--", asked, folder=copy)
    assert "lung_h" in done.stdout


def test_the_audit_reads_what_the_reference_gate_was_chosen_by(copy: Path) -> None:
    asked = ("--config", "ablations={switches: [gate_first_cells]}")
    done = snakemake("-n", *asked, "--", "results/evaluation/audit.csv", folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split("Audit: what each flaw")[1].split("\n\n")[0]
    assert "results/variants/reference/models/gate/metrics.json" in job
