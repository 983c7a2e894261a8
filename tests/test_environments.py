"""Every environment solves, installs and runs its rules, and the workflow runs in them by `--sdm conda`.

No conda client or channel is in reach of the project's checks: the channel is made of the running environment
(`conda_channel`), and the client is a stand-in that solves and installs with py-rattler (`conda_client`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conda_channel import record_of, write_channel, write_index
from conda_client import install_client
from environments import (
    ENVIRONMENTS,
    REPOSITORY,
    exact_packages,
    library_of,
    must_hold,
    script_tree,
    specs_here,
    stages_and_scripts,
)
from test_packaging import STAGES
from test_workflow import copy

__all__ = ["copy"]
pytestmark = [pytest.mark.long, pytest.mark.workflow]

PROBE = """
import importlib, json, pathlib, sys
asked = json.loads(sys.argv[1])
for name in asked["modules"]:
    importlib.import_module(name)
homes = [pathlib.Path(sys.prefix), pathlib.Path(asked["library"])]
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
# Modules that torch makes up have a file without a folder.
places = [pathlib.Path(file) for file in files if file and pathlib.Path(file).is_absolute()]
strange = [str(place) for place in places if not any(home in place.parents for home in homes)]
print(json.dumps({"strange": strange, "python": sys.version_info[:2]}))
"""


@pytest.fixture(scope="module")
def conda(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the stand-in's program, on a channel of all that is installed here."""
    root = tmp_path_factory.mktemp("conda")
    yield install_client(root / "client", write_channel(root / "channel"))
    shutil.rmtree(root)


def run(
    command: list[str], conda: Path, folder: Path, timeout: int = 1800, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a plain shell of which PATH holds the stand-in and no Python of ours."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "SNAKEMAKE_PROFILE", "CONDA_OVERRIDE_CUDA")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    environment = kept | {"PATH": f"{conda}:/usr/local/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1"} | changes
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def create(conda: Path, file: Path, prefix: Path, **changes: str) -> Path:
    """Make an environment with the stand-in; returns the folder of its programs."""
    command = [str(conda / "conda"), "env", "create", "--quiet", "--file", str(file), "--prefix", str(prefix)]
    done = run(command, conda, prefix.parent, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return prefix / "bin"


@pytest.mark.parametrize("stage", STAGES)
def test_environment_installs_and_its_rules_find_their_imports(conda: Path, tmp_path: Path, stage: str) -> None:
    programs = create(conda, ENVIRONMENTS / f"{stage}.yaml", tmp_path / stage)
    scripts = [script for other, script in stages_and_scripts() if other == stage]
    outside = {module for script in scripts for module in must_hold(stage, script)}
    library = {module for script in scripts for module in library_of(script_tree(script))}
    asked = {"modules": [*sorted(outside), *sorted(library)], "library": str(REPOSITORY / "src")}
    done = run(
        [str(programs / "python"), "-c", PROBE, json.dumps(asked)],
        conda,
        tmp_path,
        PYTHONPATH=str(REPOSITORY / "src"),
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["strange"] == []
    shutil.rmtree(tmp_path / stage)


def test_the_probe_sees_a_package_that_is_missing(conda: Path, tmp_path: Path) -> None:
    programs = create(conda, ENVIRONMENTS / "splits.yaml", tmp_path / "splits")
    asked = {"modules": ["scanpy"], "library": str(REPOSITORY / "src")}
    done = run([str(programs / "python"), "-c", PROBE, json.dumps(asked)], conda, tmp_path)
    assert "ModuleNotFoundError: No module named 'scanpy'" in done.stderr


def small_study(folder: Path) -> None:
    """Write a study of one training slide and one cohort of which the models learn for a moment."""
    sheet = (folder / "config/slides.tsv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in sheet if line.startswith(("#", "slide\t", "ovary_1\t", "ovary_h\t"))]
    (folder / "config/two.tsv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    models: dict[str, Any] = yaml.safe_load((folder / "config/models/demo.yaml").read_text(encoding="utf-8"))
    models["context"]["pretrain"]["samples_per_epoch"] = 128
    for settings in (models["context"]["pretrain"], models["local"], models["global"], models["gate"]):
        settings["trainer"]["max_epochs"] = 1
    models.pop("ablations")
    (folder / "config/models/two.yaml").write_text(yaml.safe_dump(models), encoding="utf-8")
    study = {"study": "two slides", "slides": "config/two.tsv", "models": "config/models/two.yaml"}
    (folder / "two.yaml").write_text(yaml.safe_dump(study | {"evaluation": {"bootstrap": 100}}), encoding="utf-8")


def test_snakemake_runs_the_study_in_the_environments(conda: Path, copy: Path) -> None:
    """All stages: Snakemake from its own environment, each rule in that of its stage, from bundles to the report."""
    small_study(copy)
    programs = create(conda, ENVIRONMENTS / "workflow.yaml", copy / "workflow_environment")
    path = {"PATH": f"{conda}:{programs}:/usr/local/bin:/usr/bin:/bin"}
    command = ["snakemake", "--sdm", "conda", "--cores", "2", "--configfile", "two.yaml", "--"]
    done = run([*command, "labels"], conda, copy, **path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (copy / "results/labels/ovary_h/labels.parquet").is_file()
    done = run([*command, "demo"], conda, copy, **path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (copy / "results/overview.html").is_file()
    made = [path for path in (copy / ".snakemake/conda").iterdir() if path.is_dir()]
    assert len(made) == len(STAGES)
    again = run([*command, "demo"], conda, copy, **path)
    assert "Nothing to be done" in again.stdout + again.stderr
    shutil.rmtree(copy / ".snakemake/conda")
    shutil.rmtree(copy / "workflow_environment")


def test_exact_packages_are_written_and_an_environment_is_made_of_them(conda: Path, copy: Path) -> None:
    for file in (copy / "envs").glob("*.yaml"):
        if file.stem != "splits":
            file.unlink()
    done = run(["make", "--no-print-directory", "pins"], conda, copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (copy / ".pins").exists()
    pins = copy / "envs/splits.linux-64.pin.txt"
    exact = exact_packages(pins.read_text(encoding="utf-8"))
    assert set(specs(ENVIRONMENTS / "splits.yaml")) <= {(name, version) for name, version, _ in exact}
    command = [str(conda / "conda"), "create", "--file", str(pins), "--prefix", str(copy / "made"), "--yes"]
    made = run(command, conda, copy)
    assert made.returncode == 0, made.stderr
    assert sorted(file.stem for file in (copy / "made/conda-meta").glob("*.json")) == sorted(
        "-".join(one) for one in exact
    )


def specs(file: Path) -> list[tuple[str, str]]:
    """Return names and versions of an environment, but Python's, for the running Python."""
    lines = [line.split("=") for line in specs_here(file)]
    return [(name, version) for name, version in lines if name != "python"]


@pytest.mark.parametrize(("driver", "build"), [("", "cpu_0"), ("13.2", "cuda_0"), ("12.2", "cpu_0")])
def test_a_named_driver_decides_which_build_of_pytorch_is_taken(tmp_path: Path, driver: str, build: str) -> None:
    """Made-up builds as conda-forge has them: the CUDA build has the higher number and asks for a driver."""
    version = dict(specs(ENVIRONMENTS / "train.yaml"))["pytorch"]
    records = [
        record_of("pytorch", version, [], "cpu_0", 0),
        record_of("pytorch", version, ["__cuda >=13"], "cuda_0", 200),
    ]
    for record in records:
        place = tmp_path / "cache" / f"pytorch-{version}-{record['build']}" / "info"
        place.mkdir(parents=True)
        (place / "index.json").write_text(json.dumps(record))
        (place / "paths.json").write_text(json.dumps({"paths_version": 1, "paths": []}))
    conda = install_client(tmp_path / "client", write_index(tmp_path, records))
    environment = {"channels": ["conda-forge", "nodefaults"], "dependencies": [f"pytorch={version}"]}
    (tmp_path / "torch.yaml").write_text(yaml.safe_dump(environment))
    # Empty, it hides the driver of the machine that the test runs on.
    create(conda, tmp_path / "torch.yaml", tmp_path / "made", CONDA_OVERRIDE_CUDA=driver)
    assert [file.stem for file in (tmp_path / "made/conda-meta").glob("*.json")] == [f"pytorch-{version}-{build}"]
