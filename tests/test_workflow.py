"""The workflow as a whole: it parses, resolves, is linted, and every rule is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
RULES = sorted((REPOSITORY / "rules").glob("*.smk"))
DIRECTIVES = ("output", "log", "benchmark", "threads", "resources", "conda", "message", "script")
SOURCES = ("simulate_bundle",)
"""Rules that make something out of nothing, and need no input."""


def snakemake(*arguments: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run Snakemake as a user would, without a lock, so that a run that is under way is not disturbed."""
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    command = [sys.executable, "-m", "snakemake", "--nolock", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def rule_blocks() -> dict[str, str]:
    """Return the text of every rule that makes files; a rule derived from another has both texts."""
    blocks: dict[str, str] = {}
    for path in RULES:
        for block in re.split(r"^ *(?=rule \w|use rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            derived = re.match(r"use rule (\w+) as (\w+) with:", block)
            if derived:
                blocks[derived[2]] = block + blocks[derived[1]]
            else:
                blocks[block.split()[1].rstrip(":")] = block
    return {name: block for name, block in blocks.items() if has(block, "output")}


def has(block: str, directive: str) -> bool:
    return re.search(rf"^ +{directive}:", block, re.MULTILINE) is not None


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository without anything made."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        source = REPOSITORY / name
        if source.is_file() and not source.is_symlink():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tmp_path / name)
    (tmp_path / "slurm").symlink_to("profiles/slurm")
    return tmp_path


@pytest.mark.parametrize("name", sorted(rule_blocks()))
def test_rule_is_complete(name: str) -> None:
    block = rule_blocks()[name]
    wanted = DIRECTIVES if name in SOURCES else ("input", *DIRECTIVES)
    missing = [directive for directive in wanted if not has(block, directive)]
    assert not missing, f"rule {name} lacks {', '.join(missing)}"
    assert f'"logs/{name}' in block, f"the log of rule {name} is not logs/{name}..."
    assert f'"benchmarks/{name}' in block, f"the benchmark of rule {name} is not benchmarks/{name}..."
    assert "mem_mb" in block, f"rule {name} does not say its memory"
    assert "runtime" in block, f"rule {name} does not say its run time"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_script_is_thin_and_named_as_its_rule(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""')
    used_by = [name for name, block in rule_blocks().items() if f"/scripts/{path.name}" in block]
    assert path.stem in used_by, f"no rule is called {path.stem}"


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rule_files_hold_no_settings_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert not re.search(r"partition|account|gpu_model", text)


def test_snakefile_is_short() -> None:
    assert len((REPOSITORY / "workflow/Snakefile").read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.workflow
def test_lint_is_clean() -> None:
    done = snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Congratulations" in done.stdout + done.stderr


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        ([], {"simulate_bundle": 8, "build_slide": 8, "label_cells": 8, "split_cells": 8, "train_local": 1}),
        (["--configfile", "config/paper.yaml"], {"fetch_bundle": 11, "build_slide": 11, "label_cells": 11}),
        (["labels"], {"simulate_bundle": 8, "label_cells": 8}),
        (["panels"], {"simulate_bundle": 8, "check_panel": 8, "tabulate_panels": 1, "total": 18}),
        (["results/figures/branch_maps.pdf"], {"train_gate": 1, "train_baseline_finetuned": None}),
        (["results/figures/gradcam.pdf"], {"train_gate": 1, "train_baseline_finetuned": 3, "compute_gradcam": 1}),
    ],
)
def test_dry_run_resolves(copy: Path, arguments: list[str], jobs: dict[str, int]) -> None:
    done = snakemake(
        "-n", *(["--", *arguments] if arguments and not arguments[0].startswith("-") else arguments), folder=copy
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    for name, number in jobs.items():
        assert counts.get(name) == number, f"{name}: {counts.get(name)} jobs instead of {number}"


@pytest.mark.workflow
def test_dry_run_on_slurm_takes_the_paper_study(copy: Path) -> None:
    done = snakemake("--profile", "slurm", "-n", "all", folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^fetch_bundle +11$", done.stdout, re.MULTILINE)


@pytest.mark.workflow
def test_a_mistake_is_told_without_a_traceback(copy: Path) -> None:
    config = copy / "config/config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("min_genes:", "min_gene:"), encoding="utf-8")
    done = snakemake("--cores", "1", folder=copy)
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert "unknown key 'min_gene' in qc. Did you mean 'min_genes'?" in told
    assert "Traceback" not in told
    assert "common.smk" not in told
    assert not (copy / "results").exists()


@pytest.mark.workflow
@pytest.mark.parametrize(("arguments", "limited"), [([], False), (["--max-jobs-per-timespan", "50/1m"], True)])
def test_the_default_limit_of_starts_is_lifted(copy: Path, arguments: list[str], limited: bool) -> None:
    """With it Snakemake's scheduler looks for work once a second for every job that has ended."""
    snakefile = copy / "workflow/Snakefile"
    text = snakefile.read_text(encoding="utf-8")
    told = 'onsuccess:\n    logger.info(f"limited: {workflow.scheduler.job_rate_limiter is not None}")\n'
    assert text.count("onsuccess:\n") == 1
    snakefile.write_text(text.replace("onsuccess:\n", told), encoding="utf-8")
    done = snakemake("--cores", "1", *arguments, "--", "plan", folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"limited: {limited}" in done.stdout + done.stderr
