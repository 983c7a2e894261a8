"""The doctor on GPUs: made-up drivers and builds of PyTorch, each verdict with its remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from doctor_example import make_case, only, program
from nuclass.doctor import gpu
from nuclass.doctor.case import Case
from nuclass.doctor.networks import FLOOR, memory_of, uses_of
from nuclass.doctor.slurm import on_a_gpu_node

TORCH = """
__version__ = "2.15.0"
class version: cuda = {cuda!r}; hip = None
class Facts:
    def __init__(self, name, memory, major, minor):
        self.name, self.total_memory, self.major, self.minor = name, memory, major, minor
DEVICES = [Facts(*one) for one in {devices!r}]
class cuda:
    is_available = staticmethod(lambda: bool(DEVICES))
    device_count = staticmethod(lambda: len(DEVICES))
    get_device_properties = staticmethod(lambda number: DEVICES[number])
    get_arch_list = staticmethod(lambda: {archs!r})
    is_bf16_supported = staticmethod(lambda emulated: {bf16!r})
    @staticmethod
    def init(): raise RuntimeError({reason!r})
class ones:
    def __init__(self, *shape, device=None): pass
    def __matmul__(self, other): return self
    def sum(self):
        if {broken!r}: raise RuntimeError({broken!r})
        return 512.0
"""
H100 = ("NVIDIA H100", 85_000_000_000, 9, 0)
NOTHING: dict[str, Any] = {
    "cuda": "13.2",
    "devices": [],
    "archs": ["sm_80", "sm_90", "compute_90"],
    "bf16": True,
    "reason": "no CUDA-capable device is detected",
    "broken": "",
}


def machine(folder: Path, cards: str = "", cuda: str = "13.2", **torch: Any) -> None:
    """Write nvidia-smi, unless there are no cards, and a PyTorch that says what is wanted."""
    if cards:
        listed = "\n".join(f"echo '{line}'" for line in cards.splitlines())
        program(folder, "nvidia-smi", f'if [ -z "$1" ]; then echo "| CUDA Version: {cuda} |"; exit; fi\n{listed}')
    (folder / "torch").mkdir(exist_ok=True)
    (folder / "torch/torch.py").write_text(TORCH.format(**{**NOTHING, **torch}), encoding="utf-8")


def on(folder: Path, paper: bool = True, **more: Any) -> Case:
    environ = {"PYTHONPATH": str(folder / "torch"), **more.pop("environ", {})}
    return make_case(folder, paper=paper, environ=environ, **more)


def test_a_gpu_that_fits(tmp_path: Path) -> None:
    machine(tmp_path, "NVIDIA H100, 81559, 12", devices=[H100])
    case = on(tmp_path)
    for name in ("driver", "torch and CUDA", "number of GPUs", "GPU memory", "bfloat16"):
        assert only(gpu.CHECKS, name, case).verdict == "pass", name
    assert only(gpu.CHECKS, "torch and CUDA", case).found == "torch 2.15.0 for CUDA 13.2 sees 1 GPU"


def test_no_gpu(tmp_path: Path) -> None:
    machine(tmp_path)
    assert only(gpu.CHECKS, "driver", on(tmp_path, paper=False)).verdict == "pass"
    found = only(gpu.CHECKS, "driver", on(tmp_path))
    assert (found.verdict, found.remedy) == ("fail", "take a machine with a GPU, or: snakemake --profile slurm")
    program(tmp_path, "sbatch", "")
    assert only(gpu.CHECKS, "driver", on(tmp_path)).verdict == "pass"


def test_a_driver_that_fails(tmp_path: Path) -> None:
    machine(tmp_path)
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9")
    found = only(gpu.CHECKS, "driver", on(tmp_path))
    assert found.verdict == "fail"
    assert found.found.startswith("the driver does not answer: exit status 9: NVIDIA-SMI has failed")
    assert found.remedy == "restart the machine, or ask its administrator: nvidia-smi fails"
    # A login node has the driver of the nodes and no card; small networks need none.
    assert only(gpu.CHECKS, "driver", on(tmp_path, paper=False)).verdict == "warn"
    program(tmp_path, "sbatch", "")
    assert only(gpu.CHECKS, "driver", on(tmp_path)).verdict == "warn"
    # In a job that has a GPU this machine is the one that counts.
    assert only(gpu.CHECKS, "driver", on(tmp_path, environ={"SLURM_JOB_GPUS": "0"})).verdict == "fail"


def test_the_small_card_of_a_login_node(tmp_path: Path) -> None:
    old = ("Quadro P400", 2_000_000_000, 6, 1)
    machine(tmp_path, "Quadro P400, 2048, 0", devices=[old], broken="no kernel image is available")
    names = ("torch and CUDA", "GPU memory")
    assert [only(gpu.CHECKS, name, on(tmp_path)).verdict for name in names] == ["fail", "fail"]
    program(tmp_path, "sbatch", "")
    torch, memory = (only(gpu.CHECKS, name, on(tmp_path)) for name in names)
    assert (torch.verdict, memory.verdict) == ("warn", "warn")
    assert torch.found.endswith("; jobs run on the cluster's")
    assert memory.remedy == (
        "srun --gpus=1 --mem=8G .venv/bin/nuclass doctor --configfile config/paper.yaml --only gpu machine"
        "   looks at one of its nodes"
    )
    case = on(tmp_path)
    case.__dict__["profile"] = {"set-resources": {"train_local": {"slurm_partition": "gpu"}}}
    assert only(gpu.CHECKS, "GPU memory", case).remedy.startswith("srun -p gpu --gpus=1 --mem=8G .venv/bin/nuclass ")
    given = on(tmp_path, environ={"SLURM_STEP_GPUS": "0"})
    assert [only(gpu.CHECKS, name, given).verdict for name in names] == ["fail", "fail"]
    machine(tmp_path, "Quadro P400, 2048, 0")
    assert only(gpu.CHECKS, "torch and CUDA", on(tmp_path)).verdict == "warn"


@pytest.mark.parametrize(
    ("general", "own", "words"),
    [
        ({}, {}, "srun --gpus=1 --mem=8G"),
        (
            {"slurm_account": "'mine'", "slurm_partition": "cpu"},
            {"slurm_partition": "gpu, a100"},
            "srun -p gpu,a100 -A mine --gpus=1 --mem=8G",
        ),
        ({"slurm_account": "mine,other"}, {"gpu_model": "a100"}, "srun -A mine --gpus=a100:1 --mem=8G"),
        ({}, {"gpu": 0, "gres": "'gpu:a100:1'"}, "srun --gres=gpu:a100:1 --mem=8G"),
        ({}, {"gpu": 1, "gres": "'lscratch:9'"}, "srun --gpus=1 --mem=8G"),
    ],
)
def test_a_gpu_node_is_asked_for_as_the_profile_does(general: dict[str, Any], own: dict[str, Any], words: str) -> None:
    assert on_a_gpu_node({"default-resources": general, "set-resources": {"train_local": own}}) == words


@pytest.mark.parametrize(
    ("changes", "environ", "found", "remedy"),
    [
        (
            {"cuda": None},
            {},
            "torch 2.15.0 for processors: a build that knows no GPU",
            "rm -f .venv/.complete; make setup   (it must bring the CUDA build of torch)",
        ),
        (
            {},
            {"CUDA_VISIBLE_DEVICES": ""},
            "CUDA_VISIBLE_DEVICES is '', which hides every GPU",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (
            {"driver": "12.4"},
            {},
            "torch 2.15.0 for CUDA 13.2, but the driver knows CUDA up to 12.4",
            "update the driver, or install a torch for CUDA 12: see pytorch.org, previous versions",
        ),
        (
            {},
            {},
            "torch 2.15.0 for CUDA 13.2 sees no GPU: no CUDA-capable device is detected",
            "python -c 'import torch; torch.cuda.init()'   tells more",
        ),
    ],
)
def test_why_pytorch_sees_no_gpu(
    tmp_path: Path, changes: dict[str, Any], environ: dict[str, str], found: str, remedy: str
) -> None:
    driver = {"cuda": changes["driver"]} if "driver" in changes else {}
    machine(tmp_path, "NVIDIA H100, 81559, 12", **driver)
    changes = {key: value for key, value in changes.items() if key != "driver"}
    (tmp_path / "torch/torch.py").write_text(TORCH.format(**{**NOTHING, **changes}), encoding="utf-8")
    told = only(gpu.CHECKS, "torch and CUDA", on(tmp_path, environ=environ))
    assert (told.verdict, told.found, told.remedy) == ("fail", found, remedy)
    # Networks that need no GPU are only slower.
    assert only(gpu.CHECKS, "torch and CUDA", on(tmp_path, paper=False, environ=environ)).verdict == "warn"


def test_the_cuda_build_in_a_conda_environment(tmp_path: Path) -> None:
    machine(tmp_path, "NVIDIA H100, 81559, 12")
    (tmp_path / "torch/torch.py").write_text(TORCH.format(**{**NOTHING, "cuda": None}), encoding="utf-8")
    found = only(gpu.CHECKS, "torch and CUDA", on(tmp_path, environment=Path("envs/train.yaml")))
    assert found.remedy.startswith("rm -r .snakemake/conda; CONDA_OVERRIDE_CUDA=13.2 snakemake --cores 1 --sdm conda")


def test_a_gpu_that_the_build_does_not_know(tmp_path: Path) -> None:
    old = ("Tesla P100", 17_000_000_000, 6, 0)
    machine(tmp_path, "Tesla P100, 16384, 0", devices=[old], broken="no kernel image is available")
    found = only(gpu.CHECKS, "torch and CUDA", on(tmp_path))
    assert found.verdict == "fail"
    assert "holds no code for Tesla P100 (sm_60); it has sm_80, sm_90, compute_90" in found.found


@pytest.mark.parametrize(
    ("card", "archs", "runs"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_70", "compute_80"], True),
        ((12, 0), ["sm_90", "sm_120"], True),
        ((7, 0), ["sm_80", "compute_80"], False),
    ],
)
def test_which_code_runs_on_a_gpu(card: tuple[int, int], archs: list[str], runs: bool) -> None:
    assert gpu._covered(*card, archs) == runs


def test_a_gpu_that_does_not_compute(tmp_path: Path) -> None:
    machine(tmp_path, "NVIDIA H100, 81559, 0", devices=[H100], broken="CUDA error: uncorrectable ECC error")
    found = only(gpu.CHECKS, "torch and CUDA", on(tmp_path))
    assert found.found == "NVIDIA H100 is seen but does not compute: CUDA error: uncorrectable ECC error"
    assert (found.verdict, found.remedy) == ("fail", "restart the machine, or take another GPU")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("raise ImportError('libcudart.so.13: no such file')", "ImportError: libcudart.so.13: no such file"),
        ("import os; os.kill(os.getpid(), 11)", "importing torch ended with: exit status -11"),
    ],
)
def test_a_pytorch_that_does_not_load(tmp_path: Path, body: str, found: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/torch.py").write_text(body, encoding="utf-8")
    told = only(gpu.CHECKS, "torch and CUDA", on(tmp_path))
    assert (told.verdict, told.found, told.remedy) == (
        "fail",
        f"PyTorch cannot be loaded: {found}",
        "rm -f .venv/.complete; make setup",
    )


def test_memory_that_is_too_small(tmp_path: Path) -> None:
    machine(tmp_path, "NVIDIA L4, 23034, 0")
    found = only(gpu.CHECKS, "GPU memory", on(tmp_path))
    assert found.verdict == "fail"
    assert "NVIDIA L4 has 24.2 GB; about 68.6 GB for global (uni2-h, 128 images at once)" in found.found
    assert found.remedy == (
        "halve global.trainer.batch_size and double accumulate in the models' file, "
        "or set global.trainer.gradient_checkpointing: true"
    )


@pytest.mark.parametrize(
    ("mebibytes", "verdict"), [(52_000, "fail"), (52_600, "warn"), (65_000, "warn"), (65_700, "pass")]
)
def test_memory_within_what_the_reckoning_may_be_off(tmp_path: Path, mebibytes: int, verdict: str) -> None:
    """68.6 GB are 65,400 MiB, four fifths of them 52,300."""
    machine(tmp_path, f"NVIDIA A100, {mebibytes}, 0")
    found = only(gpu.CHECKS, "GPU memory", on(tmp_path))
    assert found.verdict == verdict
    assert found.remedy.startswith("halve global.trainer.batch_size") == (verdict != "pass")


def test_memory_that_is_in_use(tmp_path: Path) -> None:
    machine(tmp_path, "NVIDIA H100, 81559, 60000")
    found = only(gpu.CHECKS, "GPU memory", on(tmp_path))
    assert (found.verdict, found.found) == ("warn", "NVIDIA H100: 62.9 GB of 85.5 GB are in use by others")


def test_more_devices_than_there_are(tmp_path: Path) -> None:
    machine(tmp_path, "NVIDIA H100, 81559, 0", devices=[H100])
    trainer = {**uses(tmp_path)["local"].backbone}
    assert trainer["name"] == "uni2-h"
    settings = make_case(tmp_path, paper=True).study.models["local"]["trainer"]
    case = on(tmp_path, models={"local": {"trainer": {**settings, "devices": 4}}})
    found = only(gpu.CHECKS, "number of GPUs", case)
    assert (found.verdict, found.found) == ("fail", "4 asked for by local, 1 seen")
    assert found.remedy == "set local.trainer.devices: 1 in the models' file"


def test_short_floats(tmp_path: Path) -> None:
    machine(tmp_path, "Tesla V100, 32768, 0", devices=[("Tesla V100", 34e9, 7, 0)], bf16=False)
    found = only(gpu.CHECKS, "bfloat16", on(tmp_path))
    assert found.verdict == "warn"
    assert found.remedy == "set precision: 16-mixed in the models' file, or take a GPU from 2020 on"


def test_what_compiling_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "include").mkdir()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path / "include")})
    case = on(tmp_path, environ={"PATH": str(tmp_path / "bin"), "CC": "mycc"})
    told = only(gpu.CHECKS, "compilation", case)
    assert told.verdict == "warn"
    assert told.found.startswith(f"not here: a C compiler (gcc or clang) and {tmp_path / 'include' / 'Python.h'};")
    program(tmp_path, "mycc", "")
    (tmp_path / "include" / "Python.h").touch()
    told = only(gpu.CHECKS, "compilation", case)
    assert (told.verdict, told.found) == ("pass", "mycc and Python's headers are here")
    assert only(gpu.CHECKS, "compilation", on(tmp_path, paper=False)).verdict == "skip"
    models = make_case(tmp_path, paper=True).study.models
    off = {part: {"trainer": {**models[part]["trainer"], "compile": False}} for part in ("local", "global")}
    off["context"] = {"compile": False}
    (tmp_path / "bin" / "mycc").unlink()
    found = only(gpu.CHECKS, "compilation", on(tmp_path, models=off, environ={"PATH": str(tmp_path / "bin")}))
    assert (found.verdict, found.found) == ("pass", "not asked for: compile is false")


def uses(folder: Path) -> dict[str, Any]:
    return {use.part: use for use in uses_of(make_case(folder, paper=True).study.models)}


def test_memory_is_reckoned_by_hand(tmp_path: Path) -> None:
    """UNI2-h: 681,394,176 parameters, 24 blocks, 16 x 16 + 1 + 8 tokens of 1,536."""
    found = uses(tmp_path)
    unit = 265 * 128 * 1536
    assert memory_of(found["global"]) == FLOOR + 14 * 681_394_176 + 46 * 24 * unit
    assert memory_of(found["local"]) == round(FLOOR + 14 * 681_394_176 + (46 + 4.4 * 24) * 265 * 256 * 1536)
    # The context network is only used: 32 x 32 + 1 + 4 tokens of 1,024, 64 images.
    assert memory_of(found["context"]) == FLOOR + 6 * 303_129_600 + 46 * 1029 * 64 * 1024
    assert found["baseline plip"].trained
    # One image: the optimizer's step wants more than the activations.
    assert memory_of(replace(found["global"], batch=1)) == FLOOR + 18 * 681_394_176


@pytest.mark.parametrize(
    ("part", "batch", "checkpointing", "gigabytes"),
    [
        ("global", 128, False, 67.5),
        ("global", 64, False, 38.7),
        ("local", 64, True, 13.0),
        ("local", 128, True, 16.4),
        ("local", 192, True, 20.3),
        ("local", 256, True, 24.3),
        ("context", 128, False, 6.8),
        ("context", 256, False, 12.3),
    ],
)
def test_memory_is_what_an_h100_gave(
    tmp_path: Path, part: str, batch: int, checkpointing: bool, gigabytes: float
) -> None:
    """Peaks of tensors, as docs/performance.md has them; what is reckoned has room for CUDA and its allocator."""
    use = replace(uses(tmp_path)[part], batch=batch, checkpointing=checkpointing)
    wanted = memory_of(use)
    assert wanted is not None
    assert gigabytes < wanted / 1e9 < 1.41 * gigabytes


def test_networks_that_are_not_registered_are_told(tmp_path: Path) -> None:
    machine(tmp_path, "NVIDIA H100, 81559, 0")
    case = on(tmp_path, models={"local": {"backbone": {"name": "transformers:owner/net"}}})
    check = next(one for one in gpu.CHECKS if one.name == "GPU memory")
    findings = check.run(case)
    assert isinstance(findings, list)
    assert findings[-1].verdict == "skip"
    assert (
        findings[-1].found
        == "not reckoned for local (transformers:owner/net), global (transformers:owner/net): not registered"
    )
