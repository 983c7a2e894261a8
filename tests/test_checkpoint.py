"""Checkpoint files: what they hold, how they load, what is said of broken and foreign ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.training.checkpoint import load_checkpoint, restore_local, save_checkpoint
from toy_study import toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def test_broken_and_foreign_checkpoints_are_named(trained, tmp_path):
    with pytest.raises(UserError, match="is missing"):
        load_checkpoint(tmp_path / "none.ckpt", "local")
    (tmp_path / "half.ckpt").write_bytes(trained["local"].read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "half.ckpt", "local")
    with pytest.raises(UserError, match="of another model"):
        load_checkpoint(trained["local"], "gate")
    data = load_checkpoint(trained["local"], "local")
    del data["state"]["norm.weight"]
    with pytest.raises(UserError, match=r"norm\.weight"):
        restore_local(data)


def test_a_checkpoint_survives_a_round_trip(tmp_path):
    save_checkpoint(tmp_path / "best.ckpt", {"model": "local", "classes": ["a"]}, {"w": torch.arange(3)})
    data = load_checkpoint(tmp_path / "best.ckpt", "local")
    assert data["state"]["w"].tolist() == [0, 1, 2]
    assert data["versions"]["nuclass"]
