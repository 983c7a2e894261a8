"""What only a GPU shows: bfloat16 and float32 on the card, going on to the same bits, memory, compilation.

    make gputest

Skipped where there is no GPU.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import toy_study
from fit_example import PLAIN, TinyData, TinyModule, outcome, run
from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.data.modules import Loading
from nuclass.data.study import Study
from nuclass.interpret.gradcam import class_activation
from nuclass.models.backbones import build_backbone
from nuclass.training.checkpoint import load_checkpoint, read_checkpoint, restore_local
from nuclass.training.context import embed_context
from nuclass.training.interruption import StoppedError
from nuclass.training.predict import predict_slide
from nuclass.training.train import train_local
from toy_study import MODELS, one_slide, train_toy, write_toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:.*TF32.*"),
]
ON_THE_CARD = dataclasses.replace(PLAIN, accelerator="auto", deterministic=True)
PUBLISHED = ("uni2-h", "dinov3-vitl16", "plip", "loki", "musk")


def on(accelerator: str, precision: str = "auto", **run: Any) -> dict[str, Any]:
    """Return the toy study's settings for a device and a precision."""
    models = copy.deepcopy(MODELS)
    for section in (models["context"]["pretrain"], models["local"], models["global"]):
        section["trainer"] |= {"accelerator": accelerator, "precision": precision, **run}
    for section in (models["context"], models["predict"]):
        section |= {"accelerator": accelerator, "precision": precision}
    return models


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Path]]:
    """The toy study trained on the card, as the settings choose by themselves."""
    before, toy_study.MODELS = toy_study.MODELS, on("auto")
    try:
        study = write_toy(tmp_path_factory.mktemp("gpu") / "results")
        return study, train_toy(study)
    finally:
        toy_study.MODELS = before


def predicted(study: Study, checkpoints: dict[str, Path], folder: Path, models: dict[str, Any]) -> dict[str, Any]:
    """Return the probabilities (N, C) of each model for a held-out slide."""
    paths = {name: folder / f"{name}.parquet" for name in checkpoints}
    predict_slide(models, one_slide(study, "lung_h"), checkpoints, paths)
    tables = {name: pd.read_parquet(path) for name, path in paths.items()}
    return {name: table.filter(like="prob_").to_numpy() for name, table in tables.items()} | {
        "right": (tables["gate"]["label"] == tables["gate"]["prediction"]).mean()
    }


def test_the_whole_study_trains_in_bfloat16(toy: Any) -> None:
    study, checkpoints = toy
    assert torch.cuda.is_bf16_supported()
    for name in ("local", "global"):
        metrics = read_json(checkpoints[name].parent / "metrics.json")
        assert metrics["val"]["f1_macro"] > 0.6, name
    assert all(value.device.type == "cpu" for value in read_checkpoint(checkpoints["local"])["state"].values())
    with h5py.File(study.features("lung_h")) as file:
        assert json.loads(file.attrs["key"])["precision"] == "bfloat16"


def test_predictions_of_the_card_are_those_of_the_processor(toy: Any, tmp_path: Path) -> None:
    study, checkpoints = toy
    found = {
        (where, precision): predicted(study, checkpoints, tmp_path / where / precision, on(where, precision))
        for where, precision in (("cpu", "32-true"), ("gpu", "32-true"), ("gpu", "auto"))
    }
    reference = found["cpu", "32-true"]
    assert reference["right"] > 0.7
    for name in checkpoints:
        assert np.abs(found["gpu", "32-true"][name] - reference[name]).max() < 0.01, name
        assert np.abs(found["gpu", "auto"][name] - reference[name]).max() < 0.1, name
        assert np.abs(found["gpu", "auto"][name] - reference[name]).mean() < 0.01, name


def test_predictions_of_the_card_are_the_same_each_time(toy: Any, tmp_path: Path) -> None:
    study, checkpoints = toy
    one, other = (predicted(study, checkpoints, tmp_path / name, on("gpu")) for name in ("one", "other"))
    for name in checkpoints:
        assert (one[name] == other[name]).all(), name


@pytest.mark.parametrize("precision", ["32-true", "auto"])
def test_features_of_the_card_are_those_of_the_processor(toy: Any, tmp_path: Path, precision: str) -> None:
    study, _ = toy
    found = []
    for where, kind in (("cpu", "32-true"), ("gpu", precision)):
        single, file = one_slide(study, "liver_h"), tmp_path / f"{where}.h5"
        folder = study.results / "backbones" / "context"
        embed_context(on(where, kind), single, file, tmp_path / f"work {where}", folder=folder, seed=1)
        with h5py.File(file) as opened:
            found.append(opened["features"][:].astype(float))
    error = np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])
    assert error < (0.005 if precision == "32-true" else 0.03)


class Repeatable(TinyModule):
    """Pools by an operation that gives the same bits each time on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.model.backbone[2] = torch.nn.AvgPool2d(3)


class Stopping(Repeatable):
    """Asks its own process to stop at a training step of this start."""

    stop_at = 0
    steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        if self.steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().training_step(batch, batch_idx)


def told(work: Path, module: Any, result: Any) -> Any:
    """Return what must not depend on interruptions; see ``outcome``."""
    state = torch.load(work / "last.ckpt", map_location="cpu", weights_only=False)
    torch.save(state, work / "last.ckpt")
    return outcome(work, module.cpu(), result)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, precision: str, workers: int) -> None:
    settings = dataclasses.replace(ON_THE_CARD, precision=precision, workers=workers, accumulate=2, validate_every=0.5)
    straight = told(tmp_path / "straight", *run(tmp_path / "straight", settings, Repeatable()))
    for stop_at in (3, 8, 11):
        module = Stopping()
        module.stop_at = stop_at
        with pytest.raises(StoppedError):
            run(tmp_path / "work", settings, module)
    assert told(tmp_path / "work", *run(tmp_path / "work", settings, Repeatable())) == straight


KILLED = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_gpu import ON_THE_CARD, Stopping, run
class Killed(Stopping):
    def training_step(self, batch, batch_idx):
        if self.steps == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)
run(Path(sys.argv[2]), ON_THE_CARD, Killed())
"""


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight = told(tmp_path / "straight", *run(tmp_path / "straight", ON_THE_CARD, Repeatable()))
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "work"), "17"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "work" / "last.ckpt").is_file()
    assert told(tmp_path / "work", *run(tmp_path / "work", ON_THE_CARD, Repeatable())) == straight


def test_too_little_memory_names_a_smaller_batch(tmp_path: Path) -> None:
    class Greedy(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            torch.empty(1 << 50, dtype=torch.uint8, device=self.device)

    with pytest.raises(UserError) as caught:
        run(tmp_path, ON_THE_CARD, Greedy())
    assert caught.value.what == "The memory of the device is not enough"
    assert "CUDA out of memory" in str(caught.value.found)
    assert "batch_size 4 with accumulate 2" in str(caught.value.fix)
    # The card is free again for what comes after.
    assert torch.cuda.memory_allocated() < 100e6


def test_a_loss_that_is_not_finite_names_its_cells(tmp_path: Path) -> None:
    class Broken(Repeatable):
        def loss(self, batch: Any, images: Any, generator: Any) -> Any:
            return super().loss(batch, images, generator) * (float("nan") if self.global_step == 2 else 1.0)

    with pytest.raises(UserError, match="The loss is not a finite number") as caught:
        run(tmp_path, ON_THE_CARD, Broken(), TinyData(Loading(8, seed=5)))
    assert "lung_1/cell-" in str(caught.value.where)


@pytest.mark.parametrize("given", [9, [7]])
def test_devices_that_are_not_there_are_told(tmp_path: Path, given: Any) -> None:
    with pytest.raises(UserError, match="The devices are not there"):
        run(tmp_path, dataclasses.replace(ON_THE_CARD, devices=given))


def test_an_operation_that_cannot_repeat_itself_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gives other bits each time on this device") as caught:
        run(tmp_path, ON_THE_CARD)
    assert caught.value.found == "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation"
    assert caught.value.fix == "set deterministic: false"


def test_memory_of_the_card_is_recorded(tmp_path: Path) -> None:
    _, result = run(tmp_path, dataclasses.replace(ON_THE_CARD, log_every=1), Repeatable())
    assert 0 < result.history[-1]["memory_mb"] < 1000
    numbers = pd.read_csv(tmp_path / "log" / "metrics.csv")
    assert (numbers["gpu_memory_mb"].dropna() > 0).all()
    assert numbers["gpu_memory_mb"].notna().any()


@pytest.mark.parametrize("how", ["compile", "gradient_checkpointing"])
def test_a_faster_or_leaner_run_gives_a_checkpoint_like_any(toy: Any, tmp_path: Path, how: str) -> None:
    study, _ = toy
    models = on("auto", **{how: True})
    vit = {"name": "timm:test_vit", "input_px": 32, "kwargs": {"img_size": 32, "patch_size": 8}}
    states = {}
    for name, settings in (("plain", on("auto")), (how, models)):
        settings["local"]["backbone"] = vit
        settings["local"]["trainer"] |= {"max_epochs": 1, "batch_size": 32}
        train_local(settings, study, tmp_path / name, tmp_path / f"work {name}", 1)
        states[name] = load_checkpoint(tmp_path / name / "best.ckpt", "local")
    plain, other = (states[name]["state"] for name in ("plain", how))
    assert plain.keys() == other.keys()
    # One epoch by other kernels: near, and no more.
    names = [name for name, value in plain.items() if value.is_floating_point()]
    distance = sum(float((plain[name] - other[name]).norm() ** 2) for name in names) ** 0.5
    assert distance < 0.05 * sum(float(plain[name].norm() ** 2) for name in names) ** 0.5
    restore_local(states[how]).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_run_forward_and_backward_in_bfloat16(name: str) -> None:
    """The exact architectures with random weights."""
    torch.manual_seed(0)
    net = build_backbone({"name": name, "weights": "none"}, load_weights=False).cuda().train()
    net.checkpoint_gradients()
    image = torch.rand(2, 3, net.input_px, net.input_px, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        features = net(image)
    assert features.shape == (2, net.feature_dim)
    features.float().square().mean().backward()
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_activation_maps_of_the_card_are_those_of_the_processor(name: str) -> None:
    torch.manual_seed(0)
    more = {"kwargs": {"img_size": 64, "patch_size": 8}} if name == "timm:test_vit" else {}
    net = build_backbone({"name": name, "input_px": 64, **more}).eval()
    head, images = torch.nn.Linear(net.feature_dim, 3), torch.rand(4, 3, 64, 64)
    found = []
    for device in ("cpu", "cuda"):
        net.to(device)
        head.to(device)
        maps, logits = class_activation(net, lambda d=device: head(net(images.to(d))), torch.tensor([0, 1, 2, 0]))
        found.append((maps.cpu(), logits.cpu()))
    assert torch.allclose(found[0][1], found[1][1], atol=0.01)
    assert (found[0][0] - found[1][0]).norm() < 0.05 * found[0][0].norm()


def test_the_doctor_knows_the_card() -> None:
    command = [sys.executable, "-m", "nuclass", "doctor", "--only", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert torch.cuda.get_device_name().removeprefix("NVIDIA ").split()[0] in shown
    assert "FAIL" not in shown
