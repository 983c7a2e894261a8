"""Checkpoint files: what they hold, how they load, what is said of broken and foreign ones."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.core.protocol import Protocol
from nuclass.data.study import Study
from nuclass.training import checkpoint as checkpoints
from nuclass.training.branches import Branches, state_hash
from nuclass.training.checkpoint import (
    FORMAT,
    describe_checkpoint,
    load_checkpoint,
    restore_gate,
    restore_global,
    restore_local,
    save_checkpoint,
)
from nuclass.training.config import Local, Predict, from_plain
from nuclass.training.restore import _Uninitialised, new_local
from toy_study import CLASSES, MODELS, toy

torch.set_num_threads(1)
RESTORE = {"local": restore_local, "global": restore_global, "gate": restore_gate}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def payload(**more: object) -> dict:
    common = {
        "model": "local", "config": {}, "classes": ["a", "b"], "organs": ["lung"], "mpp": 0.25,
        "windows": {"local": 224}, "cells": {"s": {"train": ["1"]}}, "input": {}, "temperature": 1.0,
    }  # fmt: skip
    return {**common, **more}


def message(error: pytest.ExceptionInfo[UserError]) -> list[str]:
    """Return the lines of a message without the indentation."""
    return [line.strip() for line in str(error.value).splitlines()]


def test_a_checkpoint_survives_a_round_trip(tmp_path):
    save_checkpoint(tmp_path / "best.ckpt", payload(), {"w": torch.arange(3)})
    data = load_checkpoint(tmp_path / "best.ckpt", "local")
    assert data["state"]["w"].tolist() == [0, 1, 2]
    assert data["versions"].keys() == {"nuclass", "torch", "python"}
    assert data["format"] == FORMAT
    assert {key: data[key] for key in payload()} == payload()


def test_equal_content_gives_equal_bytes(tmp_path):
    """Given a path, torch writes the file's name into it, which holds the number of the process while it is written."""
    for name in ("one.ckpt", "two.ckpt"):
        save_checkpoint(tmp_path / name, payload(), {"w": torch.arange(3)})
    assert (tmp_path / "one.ckpt").read_bytes() == (tmp_path / "two.ckpt").read_bytes()


def test_tensors_lie_in_the_file_and_changing_them_changes_nothing(tmp_path):
    save_checkpoint(tmp_path / "best.ckpt", payload(), {"w": torch.zeros(1 << 20)})
    data = load_checkpoint(tmp_path / "best.ckpt", "local")
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert mapped
    data["state"]["w"] += 1
    assert float(load_checkpoint(tmp_path / "best.ckpt", "local")["state"]["w"].sum()) == 0


def test_saving_copies_no_tensor(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(checkpoints.torch, "save", lambda data, stream: kept.update(data))
    state = {"w": torch.zeros(10), "v": torch.zeros(4, 2).T}
    save_checkpoint(tmp_path / "best.ckpt", payload(), state)
    assert kept["state"]["w"].data_ptr() == state["w"].data_ptr()
    assert kept["state"]["v"].is_contiguous()


def test_a_restored_model_holds_the_mapped_tensors_themselves(trained):
    for name, restore in RESTORE.items():
        data = load_checkpoint(trained[name], name)
        model = restore(data)
        assert not model.training
        own = model.state_dict()
        assert all(own[key].data_ptr() == value.data_ptr() for key, value in data["state"].items())


def test_parameters_that_are_overwritten_are_not_drawn():
    section = from_plain(Local, MODELS["local"], "there")
    before = torch.get_rng_state()
    with _Uninitialised():
        model = new_local(section, 3, 3, load_weights=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad for p in model.parameters())
    drawn = new_local(section, 3, 3, load_weights=False)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in drawn.state_dict().items()}
    for (name, a), b in zip(model.named_buffers(), drawn.buffers(), strict=True):
        assert torch.equal(a, b), name


# What is said of files that are none


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "none.ckpt", "local")
    assert message(caught) == [
        "The checkpoint of the local model is missing",
        f"where:      {tmp_path / 'none.ckpt'}",
        "to mend it: train the model first",
    ]


def test_a_folder(tmp_path):
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path, "local")
    assert message(caught)[0] == "A checkpoint is not there"
    assert message(caught)[2:] == ["found:      a folder", "to mend it: give the path of a best.ckpt"]


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_file_that_is_cut_off(trained, tmp_path, size):
    content = trained["local"].read_bytes()
    (tmp_path / "half.ckpt").write_bytes(content[:size])
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "half.ckpt", "local")
    assert message(caught) == [
        "A checkpoint is cut off",
        f"where:      {tmp_path / 'half.ckpt'}",
        f"found:      {len(content[:size])} bytes without the end of the file",
        "to mend it: copy the file again, or train the model again",
    ]


def test_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "best.ckpt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "best.ckpt", "local")
    assert message(caught)[0] == "A checkpoint is only a pointer of Git LFS"


FOREIGN = [
    "expected:   a file named best.ckpt, as training writes it",
    "to mend it: give best.ckpt of a model's folder; a file of the original's release is taken in by "
    "'nuclass import-checkpoint'",
]


def test_files_of_another_kind(tmp_path):
    file = tmp_path / "best.ckpt"
    cases = {
        "no archive of torch.save": lambda: file.write_text("a table,\nof numbers\n"),
        "keys a": lambda: torch.save({"a": torch.zeros(1)}, file),
        "Tensor": lambda: torch.save(torch.zeros(1), file),
        "a state of Lightning, such as last.ckpt of a run, or a file of the original's release": lambda: torch.save(
            {"state_dict": {"w": torch.zeros(1)}, "pytorch-lightning_version": "2.4"}, file
        ),
        "keys format, model, state": lambda: torch.save({"format": 2, "model": "resnet", "state": {}}, file),
    }
    for found, write in cases.items():
        write()
        with pytest.raises(UserError) as caught:
            load_checkpoint(file, "local")
        lines = ["A file is not a checkpoint of this workflow", f"where:      {file}", f"found:      {found}", *FOREIGN]
        assert message(caught) == lines
    np.savez(tmp_path / "arrays.npz", a=np.zeros(2))
    with pytest.raises(UserError, match="A file is not a checkpoint of this workflow"):
        load_checkpoint(tmp_path / "arrays.npz", "local")


def test_a_file_that_would_run_code_does_not(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"format": 2, "model": "local", "state": {}, "evil": Evil()}, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="A file is not a checkpoint of this workflow"):
        load_checkpoint(tmp_path / "best.ckpt", "local")
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_of_another_model(trained):
    with pytest.raises(UserError) as caught:
        load_checkpoint(trained["local"], "gate")
    assert message(caught) == [
        "A checkpoint is of another model",
        f"where:      {trained['local']}",
        "found:      local",
        "expected:   gate",
        "to mend it: give best.ckpt of the gate model",
    ]


def test_a_newer_format(tmp_path):
    file = tmp_path / "best.ckpt"
    torch.save({"format": FORMAT + 1, "versions": {"nuclass": "9.0"}, "model": "local", "state": {}}, file)
    with pytest.raises(UserError) as caught:
        load_checkpoint(file, "local")
    assert message(caught) == [
        "A checkpoint is newer than this program",
        f"where:      {file}",
        f"found:      format {FORMAT + 1}, written by nuclass 9.0",
        f"expected:   format {FORMAT} or older",
        "to mend it: install the newer version",
    ]


def test_a_checkpoint_that_lacks_something(tmp_path):
    content = payload()
    del content["organs"], content["temperature"]
    save_checkpoint(tmp_path / "best.ckpt", content, {})
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "best.ckpt", "local")
    assert message(caught)[0] == "A checkpoint is incomplete"
    assert message(caught)[2] == "found:      no organs, temperature"


def test_weights_that_do_not_fit_are_named_by_the_first(trained):
    data = load_checkpoint(trained["local"], "local")
    del data["state"]["norm.weight"]
    with pytest.raises(UserError) as caught:
        restore_local(data)
    assert message(caught) == [
        "A checkpoint's weights do not fit the architecture it names",
        "where:      the local checkpoint",
        "found:      1 tensors missing, unknown or of another shape, the first: norm.weight not there",
        "expected:   norm.weight (192)",
        "to mend it: train the model again with this version",
    ]
    data = load_checkpoint(trained["gate"], "gate")
    data["state"]["mlp.0.bias"] = torch.zeros(7)
    with pytest.raises(UserError, match=r"the first: mlp\.0\.bias \(7\)\n.*expected: +mlp\.0\.bias \(16\)"):
        restore_gate(data)


# What a checkpoint holds


@pytest.mark.parametrize("name", ["local", "global", "gate"])
def test_all_that_use_needs_is_there(trained, name):
    data = load_checkpoint(trained[name], name)
    assert data["classes"] == sorted(CLASSES)
    assert data["organs"] == ["colon", "lung", "unknown"]
    assert data["mpp"] == 0.25
    assert data["windows"] == {"local": 32, "global": 128}
    assert data["slides"] == {"lung_1": "lung", "colon_1": "colon"}
    assert data["input"]["size"] == 32
    assert data["input"]["input_px"] == 32
    assert data["input"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert data["input"]["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert {split for by_split in data["cells"].values() for split in by_split} == {"train", "val"}
    assert data["temperature"] > 0
    assert data["protocol"] == {}
    assert data["weights"] is None
    assert data["versions"]["nuclass"]
    json.dumps({key: value for key, value in data.items() if key != "state"})
    if name == "global":
        assert data["config"]["alpha"] == {"start": 0.25, "epochs": 2.0}


def test_a_description_says_what_a_file_is(trained):
    found = describe_checkpoint(trained["gate"])
    data = load_checkpoint(trained["gate"], "gate")
    assert found["model"] == "gate"
    assert found["format"] == FORMAT
    for key in ("classes", "organs", "mpp", "windows", "input", "temperature", "versions"):
        assert found[key] == data[key]
    assert found["cells"]["lung_1"]["train"] == len(data["cells"]["lung_1"]["train"])
    assert found["cells"].keys() == {"lung_1", "colon_1"}
    assert found["parameters"] == sum(value.numel() for value in data["state"].values())
    assert found["own_heads"] is False
    assert found["protocol"] == []
    json.dumps(found)
    wide = describe_checkpoint(trained["global"])
    assert wide["alpha"] == {"start": 0.25, "epochs": 2.0}
    assert wide["backbone"] == "timm:test_resnet"
    assert describe_checkpoint(trained["local"])["backbone"] == "timm:test_resnet"


def test_a_description_tells_flaws_and_the_weights_file(trained, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    weights = {"file": "model.safetensors", "hub_id": "owner/name", "sha256": "ab", "bytes": 7}
    data |= {"protocol": {"no_buffer": True, "test_as_val": True}, "weights": weights}
    torch.save(data, tmp_path / "best.ckpt")
    found = describe_checkpoint(tmp_path / "best.ckpt")
    assert found["protocol"] == ["no_buffer", "test_as_val"]
    assert found["weights"] == weights
    assert {"no_buffer", "test_as_val"} <= vars(Protocol()).keys()


# Where it can be used

FRESH = """
import json, socket, sys
def refused(*_):
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refused
import torch
from nuclass.training.checkpoint import load_checkpoint, restore_{name}
torch.set_num_threads(1)
model = restore_{name}(load_checkpoint("best.ckpt", "{name}"))
inputs = torch.load("inputs.pt", weights_only=True)
with torch.inference_mode():
    found = model(*inputs)
torch.save(found if isinstance(found, torch.Tensor) else found.logits, "found.pt")
"""


@pytest.mark.parametrize("name", list(RESTORE))
def test_one_file_is_enough_in_an_empty_folder_without_network(trained, tmp_path, name):
    data = load_checkpoint(trained[name], name)
    torch.manual_seed(0)
    images = torch.rand(3, 3, 32, 32)
    inputs = {
        "local": (images, torch.tensor([0, 1, 2])),
        "global": (images, torch.randn(3, data.get("context_dim", 1))),
        "gate": (torch.randn(3, data.get("dim_a", 1)), torch.randn(3, data.get("dim_b", 1)),
                 *torch.softmax(torch.randn(2, 3, 3), 2)),
    }[name]  # fmt: skip
    shutil.copy(trained[name], tmp_path / "best.ckpt")
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("NUCLASS", "HF_"))},
        "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-c", FRESH.format(name=name)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    with torch.inference_mode():
        expected = RESTORE[name](data)(*inputs)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert torch.equal(found, expected if isinstance(expected, torch.Tensor) else expected.logits)
    assert {path.name for path in tmp_path.iterdir()} <= {"best.ckpt", "inputs.pt", "found.pt", ".cache", "hub"}


def as_format_1(data: dict) -> dict:
    """Return a checkpoint as version 0.1 wrote it: other names of settings, none of the keys that are new."""

    def old(section: dict, parent: str = "") -> dict:
        names = {"optimizer": "optimiser", "trainer": "run"}
        if parent == "trainer":
            names["max_epochs"] = "epochs"
        new = {"organ", "doubt", "aux_weight", "joint", "num_nodes", "save_every_min", "logger", "log_every"}
        new |= {"deterministic", "balance"}
        return {
            names.get(key, key): old(value, key) if isinstance(value, dict) else value
            for key, value in section.items()
            if key not in new
        }

    result = {key: value for key, value in data.items() if key not in ("protocol", "weights", "temperatures", "heads")}
    result |= {"format": 1, "config": old(data["config"])}
    result["input"] = {key: data["input"][key] for key in ("size", "read_level", "input_px")}
    if "context" in data:
        result["context"] = old(data["context"])
    return result


def test_files_of_format_1_still_work(trained, study, tmp_path):
    old = {}
    for name, path in trained.items():
        data = as_format_1(torch.load(path, weights_only=True))
        assert "optimiser" in data["config"]
        assert "epochs" in data["config"]["run"]
        old[name] = tmp_path / f"{name}.ckpt"
        torch.save(data, old[name])
    branches = Branches(old["local"], old["global"], Predict(accelerator="cpu"))
    new = Branches(trained["local"], trained["global"], Predict(accelerator="cpu"))
    assert state_hash(branches.model_a) == state_hash(new.model_a)
    assert state_hash(branches.model_b) == state_hash(new.model_b)
    gate = load_checkpoint(old["gate"], "gate")
    assert state_hash(restore_gate(gate)) == state_hash(restore_gate(load_checkpoint(trained["gate"], "gate")))
    assert gate["config"]["trainer"]["max_epochs"] == MODELS["gate"]["trainer"]["max_epochs"]
    assert load_checkpoint(old["global"], "global")["config"]["alpha"]["epochs"] == 2.0
    assert describe_checkpoint(old["global"])["format"] == 1
    from nuclass.data import load_cells
    from nuclass.training.predict import Predictor
    from toy_study import one_slide

    single = one_slide(study, "lung_h")
    frame = load_cells(single.slides, single.results, ("test",))
    first, second = (Predictor(copy.deepcopy(MODELS), paths).predict(frame, single) for paths in (old, trained))
    for name in trained:
        assert torch.equal(first[name].probabilities, second[name].probabilities)
