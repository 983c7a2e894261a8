"""The GPU: driver, PyTorch's build, memory against the networks' needs, bfloat16."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.progress import readable_bytes
from nuclass.doctor.case import CONDA_INSTALL, INSTALL, Case
from nuclass.doctor.commands import ask, find
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned
from nuclass.doctor.networks import Use, memory_of, uses_of
from nuclass.doctor.slurm import on_a_gpu_node

PROBE_S = 60.0
# The reckoning is up to a fifth too high.
SURELY = 0.8
# A process of its own: a broken driver can end or hang the process that asks it.
_PROBE = """
import json, sys, warnings
warnings.simplefilter("ignore")
try:
    import torch
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
    sys.exit(0)
told = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None),
        "devices": [], "reason": ""}
try:
    if torch.cuda.is_available():
        told["archs"] = torch.cuda.get_arch_list()
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            told["devices"].append({"name": facts.name, "memory": facts.total_memory, "major": facts.major,
                                    "minor": facts.minor})
        told["bf16"] = torch.cuda.is_bf16_supported(False)
        told["sum"] = float((torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum())
    elif torch.version.cuda:
        torch.cuda.init()
except Exception as error:
    told["reason"] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Card:
    """A GPU as the driver tells of it; memory in bytes."""

    name: str
    memory: int
    used: int


def cards(environ: Mapping[str, str]) -> tuple[list[Card], str]:
    """Return the GPUs that nvidia-smi shows, and why there are none; the reason is empty without nvidia-smi."""
    if find("nvidia-smi", environ) is None:
        return [], ""
    words = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    answer = ask(words, environ, 8.0)
    if not answer.well:
        return [], answer.reason
    found = []
    for line in answer.out.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3:
            total, used = (int(part) if part.isdigit() else 0 for part in parts[1:])
            found.append(Card(parts[0], total << 20, used << 20))
    return found, "" if found else "nvidia-smi shows no GPU"


def driver_cuda(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the highest CUDA version that the driver knows, as nvidia-smi tells it."""
    match = re.search(r"CUDA Version\s*:\s*(\d+)\.(\d+)", ask(["nvidia-smi"], environ, 8.0).out)
    return (int(match[1]), int(match[2])) if match else None


@lru_cache(maxsize=4)
def _probed(environ: tuple[tuple[str, str], ...], python: str) -> str:
    answer = ask([python, "-c", _PROBE], dict(environ), PROBE_S)
    if answer.well and answer.out:
        return answer.out.splitlines()[-1]
    return json.dumps({"error": f"importing torch ended with: {answer.reason}"})


def probe(case: Case) -> dict[str, Any]:
    """Return what PyTorch says of itself and the GPUs; asked once, in a process of its own."""
    told: dict[str, Any] = json.loads(_probed(tuple(sorted(case.environ.items())), sys.executable))
    return told


def _needy(case: Case) -> list[Use]:
    """Return the uses of networks that want a GPU; none where the study cannot be read."""
    if not case.sound:
        return []
    return [use for use in uses_of(case.study.models) if use.needs_gpu]


def _of_cluster(case: Case) -> bool:
    return find("sbatch", case.environ) is not None


def _elsewhere(case: Case) -> bool:
    """Return whether jobs go to nodes of a cluster and this is none of those with GPUs, by a job of Slurm on it."""
    given = any(case.environ.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"))
    return _of_cluster(case) and not given


def _on_a_node(case: Case) -> str:
    try:
        start = on_a_gpu_node(case.profile)
    except UserError:
        # The group of the cluster tells of it.
        start = on_a_gpu_node({})
    return f"{start} .venv/bin/nuclass doctor{case.options} --only gpu machine"


def _judge(case: Case, found: str, remedy: str) -> Finding:
    """Return a fault of this machine's GPUs: one of the study only where it needs a GPU and has no cluster's."""
    if _needy(case) and not _elsewhere(case):
        return failed(found, remedy)
    return warned(f"{found}; jobs run on the cluster's" if _needy(case) else found, remedy)


def driver(case: Case) -> Finding:
    """The GPUs that the driver shows."""
    found, reason = cards(case.environ)
    if found:
        told = ", ".join(f"{card.name} with {readable_bytes(card.memory)}" for card in found)
        return passed(told)
    if reason:
        return _judge(
            case,
            f"the driver does not answer: {reason}",
            "restart the machine, or ask its administrator: nvidia-smi fails",
        )
    return _none_here(case, "no NVIDIA GPU on this machine (nvidia-smi is not found)")


def _none_here(case: Case, told: str) -> Finding:
    needy = _needy(case)
    if not case.sound:
        return skipped(told)
    if not needy:
        return passed(f"{told}; the study's networks are small and need none")
    names = ", ".join(dict.fromkeys(use.name for use in needy))
    if _of_cluster(case):
        return passed(f"{told}; {names} run on the cluster's")
    return failed(f"{told}, and the study trains {names}", "take a machine with a GPU, or: snakemake --profile slurm")


def torch_build(case: Case) -> Finding:
    """PyTorch's build against the driver; where it sees no GPU, why."""
    told = probe(case)
    if "error" in told:
        return failed(f"PyTorch cannot be loaded: {told['error']}", INSTALL)
    build = f"torch {told['torch']}"
    build += f" for CUDA {told['cuda']}" if told["cuda"] else " for ROCm" if told["hip"] else " for processors"
    if told["devices"] and not told["reason"]:
        return passed(f"{build} sees {len(told['devices'])} GPU{'s' * (len(told['devices']) > 1)}")
    there, _ = cards(case.environ)
    if told["devices"]:
        return _judge(case, *_unfit(told, build))
    if not there:
        return passed(f"{build}; no GPU is here to be seen")
    return _judge(case, *_blind(case, told, build))


def _blind(case: Case, told: Mapping[str, Any], build: str) -> tuple[str, str]:
    """Return why PyTorch sees none of the GPUs that the driver shows, and what to do."""
    visible = case.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES is '{visible}', which hides every GPU", "unset CUDA_VISIBLE_DEVICES"
    highest = driver_cuda(case.environ)
    if not told["cuda"]:
        known = f"{highest[0]}.{highest[1]}" if highest else "12.8"
        again = f"rm -r .snakemake/conda; CONDA_OVERRIDE_CUDA={known} {CONDA_INSTALL}"
        return (
            f"{build}: a build that knows no GPU",
            f"{again if case.environment else INSTALL}   (it must bring the CUDA build of torch)",
        )
    wanted = tuple(int(part) for part in str(told["cuda"]).split(".")[:2])
    if highest and highest[0] < wanted[0]:
        return (
            f"{build}, but the driver knows CUDA up to {highest[0]}.{highest[1]}",
            f"update the driver, or install a torch for CUDA {highest[0]}: see pytorch.org, previous versions",
        )
    reason = told["reason"] or "no reason is given"
    return f"{build} sees no GPU: {reason}", "python -c 'import torch; torch.cuda.init()'   tells more"


def _unfit(told: Mapping[str, Any], build: str) -> tuple[str, str]:
    """Return why a GPU that is seen does not compute, and what to do."""
    card = told["devices"][0]
    kind = f"sm_{card['major']}{card['minor']}"
    archs = told.get("archs", [])
    if archs and not _covered(card["major"], card["minor"], archs):
        return (
            f"{build} holds no code for {card['name']} ({kind}); it has {', '.join(archs)}",
            "take a newer GPU, or a torch that still knows this one: see pytorch.org, previous versions",
        )
    return f"{card['name']} is seen but does not compute: {told['reason']}", "restart the machine, or take another GPU"


def _covered(major: int, minor: int, archs: list[str]) -> bool:
    """Return whether compiled code runs on a GPU: that of its generation and not newer, or code that is translated."""
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch)
        if match:
            own = int(match[2]), int(match[3])
            if own <= (major, minor) and (match[1] == "compute" or own[0] == major):
                return True
    return False


def memory(case: Case) -> list[Finding] | Finding:
    """Memory of the GPUs against what the networks want."""
    needy = [(use, memory_of(use)) for use in _needy(case)]
    if not case.sound:
        return skipped("the study cannot be read")
    if not needy:
        return skipped("the study's networks need no GPU")
    there, _ = cards(case.environ)
    unknown = [use for use, wanted in needy if wanted is None]
    known = [(use, wanted) for use, wanted in needy if wanted is not None]
    findings = []
    if known:
        findings.append(_against(case, there, known))
    if unknown:
        names = ", ".join(f"{use.part} ({use.name})" for use in unknown)
        findings.append(skipped(f"not reckoned for {names}: not registered", "GPU memory"))
    return findings


def _against(case: Case, there: list[Card], known: list[tuple[Use, int]]) -> Finding:
    use, wanted = max(known, key=lambda pair: pair[1])
    told = (
        f"about {readable_bytes(wanted)} for {use.part} ({use.name}, {use.batch} images at once), reckoned from its "
        "parameters, tokens and batch, and fitted to an H100: up to a fifth less is possible"
    )
    if not there:
        return skipped(f"{told}; no GPU here to compare with")
    least = min(there, key=lambda card: card.memory)
    told = f"{least.name} has {readable_bytes(least.memory)}; {told}"
    if least.memory < wanted:
        place = "baselines.finetuned.trainer" if use.part.startswith("baseline") else f"{use.part}.trainer"
        key = "context.batch_size" if use.part == "context" else f"{place}.batch_size"
        more = "" if use.checkpointing or not use.trained else f", or set {place}.gradient_checkpointing: true"
        remedy = f"halve {key} and double accumulate in the models' file{more}"
        if _elsewhere(case):
            return warned(
                f"{told}; jobs run on the cluster's",
                f"{_on_a_node(case)}   looks at one of its nodes",
            )
        return (failed if least.memory < wanted * SURELY else warned)(told, remedy)
    if least.used > least.memory / 5:
        return warned(
            f"{least.name}: {readable_bytes(least.used)} of {readable_bytes(least.memory)} are in use by others",
            "nvidia-smi   shows by whom; wait, or choose another by CUDA_VISIBLE_DEVICES",
        )
    return passed(told)


def number(case: Case) -> Finding:
    """GPUs against the devices that the models' file names."""
    needy = _needy(case)
    if not needy:
        return skipped("the study's networks need no GPU" if case.sound else "the study cannot be read")
    there, _ = cards(case.environ)
    use = max(needy, key=lambda one: one.devices)
    told = f"{use.devices} asked for by {use.part}"
    if not there:
        return skipped(f"{told}; none here")
    seen = len(probe(case).get("devices", []))
    if seen and seen < use.devices and not _of_cluster(case):
        return failed(f"{told}, {seen} seen", f"set {use.part}.trainer.devices: {seen} in the models' file")
    return passed(f"{told}, {seen or len(there)} here")


def short_floats(case: Case) -> Finding:
    """bfloat16, by which training takes half the time and memory."""
    told = probe(case)
    if "error" in told or not told["devices"]:
        return skipped("no GPU is seen")
    if told.get("bf16"):
        return passed("known to the GPU")
    name = told["devices"][0]["name"]
    if not _needy(case):
        return passed(f"not known to {name}; the study does not need it")
    return warned(
        f"not known to {name}: training takes about twice the time",
        "set precision: 16-mixed in the models' file, or take a GPU from 2020 on",
    )


def compilation(case: Case) -> Finding:
    """What compiling the networks wants besides PyTorch: a C compiler and the headers of Python."""
    needy = _needy(case)
    if not needy:
        return skipped("the study's networks need no GPU" if case.sound else "the study cannot be read")
    models = case.study.models
    places = {"context": models["context"], **{part: models[part]["trainer"] for part in ("local", "global")}}
    asked = [name for name, section in places.items() if section.get("compile", "auto") is not False]
    if not asked:
        return passed("not asked for: compile is false")
    compilers = [case.environ.get("CC", ""), "gcc", "clang"]
    found = next((name for name in compilers if name and find(name, case.environ)), "")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacking = [*([] if found else ["a C compiler (gcc or clang)"]), *([] if headers.is_file() else [str(headers)])]
    if not lacking:
        return passed(f"{found} and Python's headers are here")
    return warned(
        f"not here: {' and '.join(lacking)}; without them features take twice the time, trainings a third more",
        "module load gcc   on many clusters; a Python of conda has its headers, Debian's: apt-get install python3-dev",
    )


CHECKS = [
    Check("gpu", "driver", driver, 30.0),
    Check("gpu", "torch and CUDA", torch_build, PROBE_S + 20),
    Check("gpu", "number of GPUs", number, PROBE_S + 20),
    Check("gpu", "GPU memory", memory, 30.0),
    Check("gpu", "bfloat16", short_floats, PROBE_S + 20),
    Check("gpu", "compilation", compilation, 5.0),
]
