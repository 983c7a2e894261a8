"""Weights of backbones from the hub: downloaded when it answers, told what to do when it does not."""

from __future__ import annotations

import logging
import types
from pathlib import Path

import pytest
from safetensors.torch import save_file

from backbone_example import alone, musk_file, refusal  # noqa: F401
from nuclass.models.backbones import build_backbone, hub


class FakeHub:
    """Stands for the hub: lists files with their sizes and 'downloads' them."""

    def __init__(self, files: dict[str, bytes], fault: Exception | None = None, later: Exception | None = None) -> None:
        self.files, self.fault, self.later, self.timeout, self.got = files, fault, later, None, []

    def model_info(self, hub_id: str, *, files_metadata: bool, timeout: float) -> object:
        assert files_metadata
        self.timeout = timeout
        if self.fault:
            raise self.fault
        siblings = [types.SimpleNamespace(rfilename=name, size=len(data)) for name, data in self.files.items()]
        return types.SimpleNamespace(siblings=siblings)

    def hf_hub_download(self, hub_id: str, name: str, *, local_dir: Path) -> str:
        if self.later:
            raise self.later
        self.got.append(name)
        (local_dir / name).write_bytes(self.files[name])
        return str(local_dir / name)


@pytest.fixture
def online(monkeypatch):
    def connect(fake: FakeHub) -> FakeHub:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", fake.hf_hub_download)
        return fake

    return connect


def http_fault(kind: str) -> Exception:
    from huggingface_hub import errors

    fault = getattr(errors, kind).__new__(getattr(errors, kind))
    Exception.__init__(fault, "told by the hub")
    return fault


def test_weights_are_downloaded_when_the_hub_answers(tmp_path, online, caplog):
    save_file(musk_file(), tmp_path / "there.safetensors")
    data = (tmp_path / "there.safetensors").read_bytes()
    fake = online(FakeHub({"README.md": b"-", "model.safetensors": data, "config.json": b"{}"}))
    with caplog.at_level(logging.INFO):
        backbone = build_backbone({"name": "musk"}, root=tmp_path)
    assert fake.got == ["config.json", "model.safetensors"]
    assert fake.timeout == hub.FIRST_ANSWER_S <= 10
    assert (tmp_path / "backbones" / "xiangjx" / "musk" / "model.safetensors").read_bytes() == data
    assert f"downloading model.safetensors of xiangjx/musk ({len(data) / 1e9:.2f} GB)" in caplog.text
    assert backbone.weights.bytes == len(data)
    build_backbone({"name": "musk"}, root=tmp_path)
    assert len(fake.got) == 2


@pytest.mark.parametrize("when", ["fault", "later"])
def test_a_gated_repository_tells_how_to_get_access(tmp_path, online, when):
    online(FakeHub({"model.safetensors": b"x"}, **{when: http_fault("GatedRepoError")}))
    text = refusal({"name": "musk"}, root=tmp_path)
    assert text.splitlines()[0] == "The weights are gated, and this account has no access to them"
    assert "accept the licence on the page xiangjx/musk of the hub, run: hf auth login" in text
    assert f"hf download xiangjx/musk --local-dir {tmp_path / 'backbones' / 'xiangjx' / 'musk'}" in text


def test_a_repository_that_is_not_there_is_named(tmp_path, online):
    online(FakeHub({}, fault=http_fault("RepositoryNotFoundError")))
    assert "shows no repository of this name" in refusal({"name": "transformers:some/thing"}, root=tmp_path)


@pytest.mark.parametrize("fault", [ConnectionError("no route"), TimeoutError("too slow")])
def test_a_silent_hub_is_told_with_the_missing_weights(tmp_path, online, fault):
    online(FakeHub({}, fault=fault))
    text = refusal({"name": "musk"}, root=tmp_path)
    assert "The weights of musk are missing" in text
    assert f"none there; the hub did not answer: {fault}" in text


def test_no_hub_is_asked_when_it_is_forbidden(tmp_path, online, monkeypatch):
    fake = online(FakeHub({"model.safetensors": b"x"}))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
        assert "are missing" in refusal({"name": "musk"}, root=tmp_path)
        monkeypatch.delenv(name)
    assert fake.timeout is None


def test_a_repository_without_weights_and_a_full_disk_are_named(tmp_path, online, monkeypatch):
    online(FakeHub({"README.md": b"-", "tf_model.h5": b"-"}))
    text = refusal({"name": "musk"}, root=tmp_path)
    assert "has no weight file that is known" in text
    assert "README.md, tf_model.h5" in text
    online_again = FakeHub({"model.safetensors": b"12345"})
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: online_again)
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=4))
    assert "The disk is too small for the weights" in refusal({"name": "musk"}, root=tmp_path)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=40))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: (_ for _ in ()).throw(full))
    text = refusal({"name": "musk"}, root=tmp_path)
    assert "The weights cannot be written" in text
    assert "No space left on device" in text
