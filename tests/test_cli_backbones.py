"""``nuclass backbones``: the list, and fetching."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pytest
from safetensors.torch import save_file

from backbone_example import musk_file
from nuclass.cli_backbones import add_backbones
from nuclass.core.errors import UserError
from nuclass.models.backbones import REGISTRY


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("NUCLASS_BACKBONES", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_backbones(parser.add_subparsers())
    options = parser.parse_args(["backbones", *arguments])
    options.run(options)


def test_the_list_tells_every_backbone_and_where_its_weights_are(tmp_path, capsys):
    file = tmp_path / "backbones" / "xiangjx" / "musk" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(musk_file(), file)
    run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "name library parameters features px licence gated weights".split()
    rows = {line.split()[0]: line for line in lines[2:]}
    assert set(rows) == set(REGISTRY)
    assert "303,936,512      1024  384  CC-BY-NC-ND-4.0" in rows["musk"]
    assert rows["musk"].endswith("yes    backbones/xiangjx/musk/model.safetensors")
    assert rows["plip"].endswith("no     missing: nuclass backbones fetch plip")
    assert "681,394,176" in rows["uni2-h"]
    assert rows["demo-local"].endswith("trained here")


def test_the_list_tells_hashes_when_asked(tmp_path, capsys):
    file = tmp_path / "study" / "backbones" / "xiangjx" / "musk" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(musk_file(), file)
    run("--sha256", "--root", "study")
    out = capsys.readouterr().out
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    size = f"{file.stat().st_size:,} bytes"
    assert out.splitlines()[-1] == f"musk: {size}, sha256 {digest}, what the hub sent is not on record"
    run("--root", "study")
    assert digest not in capsys.readouterr().out


def test_fetch_puts_the_weights_where_they_are_looked_for(tmp_path, capsys, monkeypatch):
    def download(hub_id: str, files: tuple[str, ...], folder: Path) -> Path:
        assert (hub_id, files) == ("vinid/plip", ("model.safetensors", "pytorch_model.bin"))
        folder.mkdir(parents=True)
        (folder / files[1]).write_bytes(b"weights")
        return folder / files[1]

    monkeypatch.setattr("nuclass.models.backbones.hub.download", download)
    run("fetch", "plip")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    told = f"7 bytes, sha256 {sha256}, what the hub sent is not on record. Licence: none stated; for research.\n"
    assert capsys.readouterr().out == f"backbones/vinid/plip/pytorch_model.bin fetched: {told}"
    run("fetch", "plip")
    assert capsys.readouterr().out == f"backbones/vinid/plip/pytorch_model.bin is there already: {told}"
    run("fetch", "plip", "--root", "other")
    assert (tmp_path / "other/backbones/vinid/plip/pytorch_model.bin").is_file()


def test_fetch_offline_says_what_to_do():
    with pytest.raises(UserError) as caught:
        run("fetch", "uni2-h")
    assert str(caught.value).splitlines() == [
        "The weights of uni2-h cannot be fetched",
        "  where:      MahmoodLab/UNI2-h on the hub",
        "  found:      HF_HUB_OFFLINE is set",
        "  expected:   an answer of the hub",
        "  to mend it: try again with a network (and without HF_HUB_OFFLINE), or on another machine run: "
        "hf download MahmoodLab/UNI2-h --local-dir backbones/MahmoodLab/UNI2-h   and copy the folder here",
    ]


def test_fetch_of_an_unknown_name_lists_the_valid_ones():
    for name in ("uni2h", "demo-local"):
        with pytest.raises(UserError, match="uni2-h, dinov3-vitl16, plip, loki, musk"):
            run("fetch", name)
    with pytest.raises(UserError, match="Did you mean 'uni2-h'"):
        run("fetch", "uni2h")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_variable_that_forbids_the_download_is_named(monkeypatch, variable):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(UserError) as caught:
        run("fetch", "plip")
    assert f"{variable} is set" in str(caught.value)
    assert f"without {variable})" in str(caught.value)
