"""The recipes of the image name files that exist, take the same ones, and make the image the workflow wants."""

from __future__ import annotations

import re
import subprocess

import yaml

from environments import REPOSITORY

CONTAINERS = REPOSITORY / "containers"
DOCKER = (CONTAINERS / "Dockerfile").read_text(encoding="utf-8")
APPTAINER = (CONTAINERS / "nuclass.def").read_text(encoding="utf-8")


def copied_by_docker() -> set[str]:
    lines = re.findall(r"^COPY (.+)$", DOCKER, re.MULTILINE)
    return {name for line in lines for name in line.split()[:-1]}


def copied_by_apptainer() -> set[str]:
    section = APPTAINER.partition("%files\n")[2].partition("\n\n")[0]
    return {line.split()[0] for line in section.splitlines()}


def test_both_recipes_take_the_same_files_and_these_exist() -> None:
    assert copied_by_docker() == copied_by_apptainer()
    assert all((REPOSITORY / name).exists() for name in copied_by_docker())


def test_docker_is_shown_what_it_takes_and_nothing_else() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied_by_docker()


def test_what_the_build_needs_is_taken() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    named = re.search(r'^readme = "(.+)"$', project, re.MULTILINE)
    licences = re.search(r'^license-files = \["(.+)"\]$', project, re.MULTILINE)
    assert named
    assert licences
    assert {named[1], licences[1], "pyproject.toml", "requirements.lock", "src"} <= copied_by_docker()


def test_both_recipes_start_alike_and_run_the_same_script() -> None:
    base = re.search(r"^FROM docker\.io/library/(\S+)$", DOCKER, re.MULTILINE)
    assert base
    assert f"From: {base[1]}\n" in APPTAINER
    call = "sh /opt/source/containers/install.sh /opt/source"
    assert call in DOCKER
    assert call in APPTAINER
    assert subprocess.run(["sh", "-n", CONTAINERS / "install.sh"]).returncode == 0


def test_the_workflow_looks_for_the_image_that_the_recipe_makes() -> None:
    snakefile = (REPOSITORY / "workflow/Snakefile").read_text(encoding="utf-8")
    image = re.search(r'^container: "(.+)"$', snakefile, re.MULTILINE)
    assert image
    assert f"apptainer build {image[1]} containers/nuclass.def" in APPTAINER


def test_the_jobs_of_the_ci_name_targets_that_exist() -> None:
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/conda.yml").read_text(encoding="utf-8"))["jobs"]
    told = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    made = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert all(
        re.search(rf"^{goal}:", made, re.MULTILINE) for goal in re.findall(r"^ *make (\w+)$", told, re.MULTILINE)
    )
    goals = "\n".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "rules").glob("*.smk"))
    for goal in ("labels", "panels", "alignment", "demo"):
        assert goal in told
        assert re.search(rf"^rule {goal}:", goals, re.MULTILINE)
