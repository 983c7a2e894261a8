"""Training of the gate: which cells it learns from, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.data.study import Study
from nuclass.training.checkpoint import load_checkpoint
from nuclass.training.gate import auroc, select_blocks, train_gate
from nuclass.training.predict import predict_slide
from toy_study import MODELS, one_slide, toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def test_the_gate_was_fitted_to_no_training_cell(trained):
    data = load_checkpoint(trained["gate"], "gate")
    for slide, cells in data["cells"].items():
        fitted = set(data["fit_cells"][slide]["val"])
        selected = set(data["select_cells"][slide]["val"])
        assert not fitted & set(cells["train"])
        assert not fitted & selected
        assert fitted | selected == set(cells["val"])


def test_a_gate_of_other_branches_is_refused(trained, study, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    data["state"]["head.4.bias"] += 1
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="trained on another local model"):
        predict_slide(MODELS, one_slide(study, "lung_h"), {**trained, "local": tmp_path / "best.ckpt"}, {})


def test_features_of_another_backbone_are_refused(trained, study, tmp_path):
    data = torch.load(trained["global"], weights_only=True)
    data["features"]["sha256"] = "other"
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="do not fit the global model"):
        train_gate(MODELS, study, trained["local"], tmp_path / "best.ckpt", tmp_path / "o", tmp_path / "w", 1)


def test_blocks_are_cut_by_place_and_by_slide():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"slide": np.repeat(["a", "b"], 500), "x_px": rng.uniform(0, 1000, 1000)})
    frame["y_px"] = rng.uniform(0, 1000, 1000)
    chosen = select_blocks(frame, 0.3, 100, 7)
    for slide in "ab":
        assert 0.25 < chosen[frame["slide"] == slide].mean() < 0.4
    block = frame["slide"] + (frame["x_px"] // 100).astype(str) + (frame["y_px"] // 100).astype(str)
    assert (pd.Series(chosen).groupby(block.to_numpy()).nunique() == 1).all()
    assert np.array_equal(chosen, select_blocks(frame, 0.3, 100, 7))
    assert not np.array_equal(chosen, select_blocks(frame, 0.3, 100, 8))
    with pytest.raises(UserError, match="cannot be cut"):
        select_blocks(frame, 0.3, 10_000, 7)


def test_auroc_by_hand():
    assert auroc(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.1])) == pytest.approx(3.5 / 4)
    assert auroc(torch.tensor([]), torch.tensor([0.1])) is None
