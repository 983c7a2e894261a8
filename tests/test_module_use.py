"""The workflow as a module of another one: from a neighbouring folder, and deployed from a repository and a version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nuclass.core.config import settings_of_module
from nuclass.core.own_files import home, own_file

REPOSITORY = Path(__file__).parent.parent
SNAKEFILE = """\
configfile: "config/config.yaml"


module nuclass:
    snakefile:
        {snakefile}
    config:
        {config}{more}


use rule * from nuclass{names}


rule count_types:
    input:
        rules.{prefix}label_cells.output.labels,
    output:
        "types/{{slide}}.txt",
    shell:
        "ls -l {{input}} > {{output}}"
"""
DEPLOYED = """\
configfile: "config/config.yaml"

# declare https://github.com/owner/nuclass-workflow as a module
module nuclass_workflow:
    snakefile:
        github("owner/nuclass-workflow", path="workflow/Snakefile", tag="v0.1.0")
    config:
        config


# use all rules from https://github.com/owner/nuclass-workflow
use rule * from nuclass_workflow
"""
SHEET = """\
slide\torgan\trole\tpatient\tsource\tdataset\tpath\the\talignment\talign\tlabels\tgiven
ovary_1\tovary\ttrain\tp1\tsynthetic\t\t\t\t\t\t\t
lung_h\tlung\tcohort\tp2\tsynthetic\t\t\t\t\t\t\t
"""


def neighbour(folder: Path, settings: dict[str, object], **changes: str) -> Path:
    """Write a workflow that uses this one; ``changes`` fill the Snakefile."""
    words = {
        "snakefile": f'"{REPOSITORY}/workflow/Snakefile"',
        "config": 'config["nuclass"]',
        "more": "",
        "names": " as nuclass_*",
        "prefix": "nuclass_",
    }
    (folder / "workflow").mkdir(parents=True)
    (folder / "workflow/Snakefile").write_text(SNAKEFILE.format(**(words | changes)), encoding="utf-8")
    (folder / "config").mkdir()
    (folder / "config/config.yaml").write_text(yaml.safe_dump({"own_key": 1, "nuclass": settings}), encoding="utf-8")
    (folder / "config/slides.tsv").write_text(SHEET, encoding="utf-8")
    return folder


def snakemake(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    left_out = ("SNAKEMAKE_PROFILE", "PYTHONPATH")
    around = {key: value for key, value in os.environ.items() if key not in left_out} | environment
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True, timeout=600)


def jobs_of(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert done.returncode == 0, done.stdout + done.stderr
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}


def repository_files() -> list[str]:
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git repository")
    return [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of Snakemake that holds the repository as a bare clone, with a tag, as if it were on GitHub."""
    work = tmp_path_factory.mktemp("hosted")
    source = work / "source"
    for name in repository_files():
        if not (REPOSITORY / name).is_symlink() and not name.startswith(("tests/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, source / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
    for step in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"], ["tag", "v0.1.0"]):
        subprocess.run([*git, *step], cwd=source, check=True)
    clone = work / "cache/snakemake/snakemake/source-cache/snakemake-git-cache/github.com/owner/nuclass-workflow"
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(clone)], check=True)
    return work


@pytest.mark.workflow
def test_a_goal_of_a_neighbour(tmp_path: Path) -> None:
    folder = neighbour(tmp_path / "mine", {"study": "mine", "slides": "config/slides.tsv"})
    done = snakemake(folder, "-n", "nuclass_labels", "types/ovary_1.txt")
    jobs = jobs_of(done)
    assert jobs["nuclass_simulate_bundle"] == jobs["nuclass_label_cells"] == 2
    assert jobs["count_types"] == 1
    assert "localrules directive" not in done.stderr
    assert not (folder / "results").exists()


@pytest.mark.workflow
def test_without_settings_it_is_the_demo_study(tmp_path: Path) -> None:
    folder = neighbour(tmp_path / "mine", {}, names="", prefix="")
    (folder / "config/slides.tsv").unlink()
    jobs = jobs_of(snakemake(folder, "-n", "all"))
    wanted = {"simulate_bundle": 8, "label_cells": 8, "train_local": 1, "train_gate": 1, "render_report": 1}
    assert {name: jobs.get(name) for name in wanted} == wanted
    assert jobs["total"] > 200


@pytest.mark.workflow
def test_a_mistake_in_the_settings_is_told_in_words(tmp_path: Path) -> None:
    folder = neighbour(tmp_path / "mine", {"slides": "config/mine.tsv"})
    done = snakemake(folder, "-n", "nuclass_labels")
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert "a sheet is missing" in told
    assert "config/mine.tsv" in told
    assert "Traceback" not in told


@pytest.mark.workflow
@pytest.mark.parametrize("key", ['prefix:\n        "sub"', 'replace_prefix:\n        {"results/": "sub/"}'])
def test_a_prefix_is_refused(tmp_path: Path, key: str) -> None:
    folder = neighbour(tmp_path / "mine", {}, more=f"\n    {key}")
    done = snakemake(folder, "-n", "nuclass_labels")
    assert done.returncode == 1
    assert "This workflow cannot be used with a prefix of its paths" in done.stdout + done.stderr


@pytest.mark.workflow
def test_deployed_from_a_repository_and_a_version(tmp_path: Path, hosted: Path) -> None:
    """The form that snakedeploy writes, with a copy of config/; nothing is asked of the network."""
    folder = tmp_path / "mine"
    shutil.copytree(REPOSITORY / "config", folder / "config")
    (folder / "workflow").mkdir()
    (folder / "workflow/Snakefile").write_text(DEPLOYED, encoding="utf-8")
    jobs = jobs_of(snakemake(folder, "-n", "labels", XDG_CACHE_HOME=str(hosted / "cache")))
    assert jobs["simulate_bundle"] == jobs["label_cells"] == 8
    (unpacked,) = (folder / ".snakemake/nuclass").iterdir()
    assert re.fullmatch(r"[0-9a-f]{40}", unpacked.name)
    assert (unpacked / "src/nuclass/__init__.py").is_file()
    assert (unpacked / "resources/classes.tsv").is_file()


@pytest.mark.workflow
@pytest.mark.slow
def test_a_version_out_of_a_clone(tmp_path: Path, hosted: Path) -> None:
    place = f'"git+file://{hosted}/source/workflow/Snakefile@v0.1.0"'
    folder = neighbour(tmp_path / "mine", {"slides": "config/slides.tsv"}, snakefile=place)
    done = snakemake(folder, "--cores", "1", "resources/bundles/ovary_1/bundle.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "resources/bundles/ovary_1/bundle.json").is_file()
    assert "is installed" not in done.stderr


@pytest.mark.workflow
@pytest.mark.slow
def test_snakedeploy_writes_this_form(tmp_path: Path, hosted: Path) -> None:
    program = Path(sys.executable).with_name("snakedeploy")
    if not program.is_file():
        pytest.skip("snakedeploy is not installed")
    # By the word in its path it is taken for one of GitHub.
    place = tmp_path / "github/owner/nuclass-workflow"
    subprocess.run(["git", "clone", "-q", str(hosted / "source"), str(place)], check=True)
    command = [str(program), "deploy-workflow", f"file://{place}", str(tmp_path / "mine"), "--tag", "v0.1.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    written = (tmp_path / "mine/workflow/Snakefile").read_text(encoding="utf-8")
    assert 'github("owner/nuclass-workflow", path="workflow/Snakefile", tag="v0.1.0")' in written
    assert (tmp_path / "mine/config/README.md").is_file()
    jobs = jobs_of(snakemake(tmp_path / "mine", "-n", "labels", XDG_CACHE_HOME=str(hosted / "cache")))
    assert jobs["label_cells"] == 8


@pytest.mark.workflow
@pytest.mark.slow
def test_a_slide_of_a_neighbour_gets_its_labels(tmp_path: Path) -> None:
    folder = neighbour(tmp_path / "mine", {"study": "mine", "slides": "config/slides.tsv"})
    done = snakemake(folder, "--cores", "2", "types/ovary_1.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "results/labels/ovary_1/labels.parquet").stat().st_size > 1000
    assert (folder / "types/ovary_1.txt").is_file()
    again = snakemake(folder, "-n", "types/ovary_1.txt", "--rerun-triggers", "mtime", "params", "input")
    assert "Nothing to be done" in again.stdout + again.stderr
    # A goal that starts Snakemake itself, which must not read the neighbour's settings as its own.
    plan = snakemake(folder, "--cores", "1", "nuclass_plan")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "mine" in (folder / "results/plan.txt").read_text(encoding="utf-8")


def test_settings_of_a_module(tmp_path: Path) -> None:
    bare = settings_of_module({}, tmp_path)
    assert bare["study"] == "demo"
    assert (tmp_path / bare["slides"]).resolve() == REPOSITORY / "config/slides.tsv"
    assert (tmp_path / bare["labels"]["extra_markers"]).resolve() == REPOSITORY / "config/markers.tsv"
    given = {"slides": "config/slides.tsv", "models": "config/models/paper.yaml", "labels": {"min_confidence": 0.6}}
    settings = settings_of_module(given, tmp_path)
    assert settings["slides"] == "config/slides.tsv"
    assert (tmp_path / settings["models"]).resolve() == REPOSITORY / "config/models/paper.yaml"
    assert settings["labels"]["min_confidence"] == 0.6
    assert settings["labels"]["n_pcs"] == bare["labels"]["n_pcs"]
    named = settings_of_module({"labels": {"extra_markers": "config/markers.tsv"}}, tmp_path)
    assert named["labels"]["extra_markers"] == "config/markers.tsv"


def test_a_file_of_the_study_stands_in_for_one_that_comes_along(tmp_path: Path) -> None:
    assert home() == REPOSITORY
    assert own_file("resources/classes.tsv", tmp_path) == REPOSITORY / "resources/classes.tsv"
    assert own_file("resources/nothing.tsv", tmp_path) == tmp_path / "resources/nothing.tsv"
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/classes.tsv").write_text("", encoding="utf-8")
    assert own_file("resources/classes.tsv", tmp_path) == tmp_path / "resources/classes.tsv"


def test_the_catalogue_file_has_its_documented_form() -> None:
    told = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))
    assert set(told) == {"usage"}
    assert set(told["usage"]) == {"mandatory-flags", "software-stack-deployment"}
    assert set(told["usage"]["mandatory-flags"]) == {"desc", "flags"}
    known = {"conda", "apptainer", "apptainer+conda", "report"}
    assert set(told["usage"]["software-stack-deployment"]) == known
    assert (REPOSITORY / "workflow/Snakefile").is_file()
    assert (REPOSITORY / "config/README.md").is_file()
