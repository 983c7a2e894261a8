"""Environments agree with the lock file, and no file names a package registry's host."""

from __future__ import annotations

import itertools
import re
import subprocess

import pytest
import yaml

from environments import (
    ENVIRONMENTS,
    PYTHON,
    REPOSITORY,
    UNREACHED,
    distributions,
    exact_packages,
    locked_versions,
    must_hold,
    needs_of,
    packages_of,
    stages_and_scripts,
)

STAGES = ("evaluate", "fetch", "figures", "labels", "report", "slides", "splits", "train")


def test_one_environment_a_stage_and_one_for_snakemake() -> None:
    assert tuple(sorted(path.stem for path in ENVIRONMENTS.glob("*.yaml"))) == (*STAGES, "workflow")
    assert {stage for stage, _ in stages_and_scripts()} == set(STAGES)


@pytest.mark.parametrize("stage", [*STAGES, "workflow"])
def test_environment_agrees_with_the_lock(stage: str) -> None:
    environment = yaml.safe_load((ENVIRONMENTS / f"{stage}.yaml").read_text(encoding="utf-8"))
    assert environment["channels"][0] == "conda-forge"
    assert environment["channels"][-1] == "nodefaults"
    assert environment["dependencies"][0] == f"python={PYTHON}"
    assert list(packages_of(stage))[1:] == sorted(packages_of(stage).keys() - {"python"})
    for name, version in packages_of(stage).items():
        assert name == "python" or locked_versions()[name] == version, f"{name} in envs/{stage}.yaml"


@pytest.mark.parametrize(("stage", "script"), [*stages_and_scripts(), ("workflow", "")])
def test_environment_holds_what_the_script_can_reach(stage: str, script: str) -> None:
    missing = set(must_hold(stage, script).values()) - packages_of(stage).keys()
    assert not missing, f"envs/{stage}.yaml lacks {', '.join(sorted(missing))}"


@pytest.mark.parametrize("stage", ["report", "workflow"])
def test_snakemake_can_write_its_report(stage: str) -> None:
    """It needs a package more for that, which it asks for only then."""
    assert "pygments" in packages_of(stage)


def test_every_script_of_a_rule_is_looked_at() -> None:
    assert {script for _, script in stages_and_scripts()} == {
        path.stem for path in (REPOSITORY / "scripts").glob("*.py")
    }


@pytest.mark.parametrize(("stage", "script", "module"), UNREACHED)
def test_an_exception_still_is_one(stage: str, script: str, module: str) -> None:
    assert module in needs_of(script), "nothing leads to it any more"
    assert distributions().get(module, module) not in packages_of(stage), "the environment holds it by now"


def test_a_pin_file_is_read_and_those_beside_an_environment_agree_with_it() -> None:
    text = (
        "@EXPLICIT\nhttps://a.b/linux-64/python-igraph-1.0.0-py312h_0.conda#d7c8\nfile:///c/noarch/six-1.17-0.tar.bz2\n"
    )
    assert exact_packages(text) == [("python-igraph", "1.0.0", "py312h_0"), ("six", "1.17", "0")]
    for file in ENVIRONMENTS.glob("*.pin.txt"):
        exact = {name: version for name, version, _ in exact_packages(file.read_text(encoding="utf-8"))}
        for name, version in packages_of(file.name.split(".")[0]).items():
            assert exact.get(name, "").startswith(version), f"{name} in {file.name}: make pins"


def test_every_locked_file_has_a_hash() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for line, following in itertools.pairwise(lines):
        if "==" in line and not line.startswith((" ", "#")):
            assert following.strip().startswith("--hash=sha256:"), line


def test_no_registry_host() -> None:
    hosts = re.compile(
        r"\b(?:{})\b".format(
            "|".join(
                [
                    "pypi" + r"\.org",
                    "python" + r"hosted\.org",
                    "ana" + r"conda\.(?:org|com)",
                    "npmjs" + r"\.(?:org|com)",
                    "pytorch" + r"\.org/whl",
                ]
            )
        )
    )
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if files.returncode != 0:
        pytest.skip("not a git repository")
    for name in files.stdout.splitlines():
        path = REPOSITORY / name
        # A pin file is a list of addresses.
        if path.is_file() and path.stat().st_size < 5_000_000 and not name.endswith(".pin.txt"):
            match = hosts.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert match is None, f"{name} names {match[0] if match else ''}"


def test_versions_agree() -> None:
    import nuclass

    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{nuclass.__version__}"' in project
    assert citation["version"] == nuclass.__version__
