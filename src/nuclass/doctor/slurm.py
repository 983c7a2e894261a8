"""Slurm as the checks ask for it: whether it is here, and what its profile says of a rule."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from nuclass.doctor.case import Case
from nuclass.doctor.commands import find

COMMANDS = ("sbatch", "squeue", "sinfo", "scancel")
LIMIT_S = 8.0
NO_SLURM = "no Slurm on this machine"


def has_slurm(case: Case) -> bool:
    """Return whether any command of Slurm is here."""
    return any(find(name, case.environ) for name in COMMANDS)


def resources_of(profile: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what a profile gives all rules, and each by itself; lists of ``key=value`` are understood too."""

    def section(value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            return {str(key): one for key, one in value.items()}
        if isinstance(value, list):
            return dict(str(item).split("=", 1) for item in value if "=" in str(item))
        return {}

    own = {
        name: section(value)
        for name, value in section(profile.get("set-resources")).items()
        if isinstance(value, Mapping)
    }
    return section(profile.get("default-resources")), own


def value_of(rule: str, key: str, profile: Mapping[str, Any]) -> str | None:
    """Return what a profile gives a rule under a key, without quotes; None where it leaves that to Slurm."""
    general, own = resources_of(profile)
    named = own.get(rule, {}).get(key, general.get(key))
    text = "" if named is None else str(named).strip().strip("'\"").strip()
    return text or None


def listed(text: str | None) -> list[str]:
    """Return the names in a text: one, or several with commas or blanks between."""
    return [part for part in re.split(r"[,\s]+", text or "") if part]


def on_a_gpu_node(profile: Mapping[str, Any]) -> str:
    """Return how a command is started on a node with a GPU: ``srun`` with what the profile gives ``train_local``."""

    def given(key: str) -> list[str]:
        return listed(value_of("train_local", key, profile))

    model, gres = given("gpu_model"), value_of("train_local", "gres", profile)
    card = f"--gpus={model[0]}:1" if model else "--gpus=1"
    if given("gpu") == ["0"] and gres:
        card = f"--gres={gres}"
    words = ["srun"]
    words += ["-p", ",".join(given("slurm_partition"))] if given("slurm_partition") else []
    words += ["-A", given("slurm_account")[0]] if given("slurm_account") else []
    return shlex.join([*words, card, "--mem=8G"])
