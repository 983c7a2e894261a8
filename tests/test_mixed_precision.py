"""Every training in bfloat16, as a GPU and processors with AVX512-BF16 do it by themselves."""

from __future__ import annotations

import copy

import pytest

import toy_study
from nuclass.core.files import read_json
from nuclass.training import composition, gate_module, modules
from nuclass.training.optim import ClipsByNorm
from toy_study import MODELS, train_toy, write_toy


@pytest.fixture
def in_bfloat16(monkeypatch):
    models = copy.deepcopy(MODELS)
    for section in (models["context"]["pretrain"], models["local"], models["global"]):
        section["trainer"] |= {"precision": "bf16-mixed", "max_epochs": 1}
    models["gate"]["trainer"]["max_epochs"] = 1
    monkeypatch.setattr(toy_study, "MODELS", models)


def test_the_whole_study_trains_in_bfloat16(in_bfloat16, tmp_path):
    paths = train_toy(write_toy(tmp_path / "results"))
    assert all(path.is_file() for path in paths.values())
    context = read_json(tmp_path / "results" / "backbones" / "context" / "metrics.json")
    assert context["history"][-1]["train_loss"] > 0


@pytest.mark.parametrize(
    "module", [composition.CompositionModule, modules.LocalModule, modules.GlobalModule, gate_module.GateModule]
)
def test_every_module_clips_beside_fused_kernels(module):
    assert issubclass(module, ClipsByNorm)
