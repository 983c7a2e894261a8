"""A copy of the repository with a study of two synthetic slides, whose jobs take seconds, for tests on Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

REPOSITORY = Path(__file__).parent.parent
GIVEN = Path(__file__).parent / "slurm"


def models() -> dict[str, Any]:
    """Return the demo's models, smaller and trained for less; the local one saves its state every other second.

    It is trained for long enough to be cancelled and requeued on a fast machine too.
    """
    made: dict[str, Any] = yaml.safe_load((REPOSITORY / "config/models/demo.yaml").read_text(encoding="utf-8"))
    del made["ablations"]
    context = made["context"]
    context["views"] = 1
    context["backbone"]["config"] |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    context["pretrain"]["samples_per_epoch"] = 200
    context["pretrain"]["trainer"] |= {"max_epochs": 1}
    made["local"]["trainer"] |= {"max_epochs": 8, "save_every_min": 0.03}
    made["global"]["trainer"] |= {"max_epochs": 1}
    made["gate"]["trainer"] |= {"max_epochs": 5}
    return made


def copy_study(folder: Path) -> Path:
    """Copy the files of the repository that are under version control, or would be, and the study beside them."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in done.stdout.splitlines():
        source = REPOSITORY / name
        if source.is_file() and not source.is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    (folder / "slurm").symlink_to("profiles/slurm")
    place = folder / "config" / "slurm"
    place.mkdir()
    shutil.copy2(GIVEN / "study.yaml", place)
    shutil.copy2(GIVEN / "slides.tsv", place)
    (place / "models.yaml").write_text(yaml.safe_dump(models(), sort_keys=False), encoding="utf-8")
    return folder


def train_for_long(folder: Path) -> None:
    """Let the local model of a study be trained for longer than a test waits; it saves its state only when told to."""
    place = folder / "config/slurm/models.yaml"
    made = yaml.safe_load(place.read_text(encoding="utf-8"))
    made["local"]["trainer"] |= {"max_epochs": 5000, "patience": 5000, "save_every_min": 600}
    place.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")


def command(*arguments: str, slurm: bool = False) -> list[str]:
    """Return a call of Snakemake for the study, on this machine or on the test cluster."""
    where = ["--profile", "slurm", "--workflow-profile", "tests/slurm/profile"] if slurm else ["--cores", "2"]
    call = [sys.executable, "-m", "snakemake", *where, "--configfile", "config/slurm/study.yaml"]
    return [*call, *(["--", *arguments] if arguments and not arguments[0].startswith("-") else arguments)]


def environment(faults: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the environment of a run: one thread a job, every job counted in ``ran.txt``, and faults in jobs."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
    path = str(GIVEN / "faults")
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "NUCLASS_TEST_FAULTS": json.dumps(faults or {})}


def counted(folder: Path) -> Counter[str]:
    """Return how often each rule's script was started."""
    return Counter(line.split()[0] for line in (folder / "ran.txt").read_text(encoding="utf-8").splitlines())


def weights(checkpoint: Path) -> dict[str, bytes]:
    """Return a checkpoint's tensors as bytes."""
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state"]
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def results(folder: Path) -> dict[str, Any]:
    """Return what must not depend on where a study ran: weights, tables, numbers."""
    place = folder / "results"
    kept: dict[str, Any] = {str(path.relative_to(place)): weights(path) for path in place.glob("models/*/best.ckpt")}
    for pattern in ("**/*.csv", "**/*.md", "**/*.npy", "splits/*.json", "backbones/**/*"):
        kept |= {str(path.relative_to(place)): path.read_bytes() for path in place.glob(pattern) if path.is_file()}
    for path in [*place.glob("labels/*/*.parquet"), *place.glob("predictions/*/*.parquet")]:
        kept[str(path.relative_to(place))] = pd.read_parquet(path).to_csv().encode()
    # How long a training took stands in these.
    return {name: value for name, value in kept.items() if not name.endswith(("history.csv", "metrics.json"))}
