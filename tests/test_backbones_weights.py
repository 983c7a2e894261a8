"""Weight files of backbones: where they are found, that all of them is loaded, and what is said of bad ones."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbone_example import (
    SMALL,
    TINY_CNN,
    TINY_DINO,
    alone,  # noqa: F401
    clip_file,
    clip_model,
    coca_model,
    images,
    musk_feature,
    musk_file,
    refusal,
    training_checkpoint,
)
from nuclass.core.errors import UserError
from nuclass.models.backbones import REGISTRY, build_backbone, check_sent, find_weights, locate
from nuclass.models.backbones.states import take
from nuclass.models.backbones.weights import told_sha256


def folder_of(name: str, base: Path) -> Path:
    folder = base / REGISTRY[name].hub_id
    folder.mkdir(parents=True)
    return folder


def random_state(name: str) -> dict[str, torch.Tensor]:
    return build_backbone({"name": name}, load_weights=False).net.state_dict()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_image_half_of_a_clip_file_is_loaded(tmp_path, suffix):
    model = clip_model()
    state = {**clip_file(), **model.state_dict()}
    folder = folder_of("plip", tmp_path / "backbones")
    if suffix == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    backbone = build_backbone({"name": "plip"}, root=tmp_path).eval()
    x = images(96)
    own = model.get_image_features(pixel_values=backbone.normalise(x)).pooler_output
    assert torch.equal(backbone(x), own)
    assert own.std() > 0


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_image_half_of_a_coca_checkpoint_is_loaded(tmp_path, wrapped):
    model = coca_model()
    state = model.state_dict()
    folder = folder_of("loki", tmp_path / "backbones")
    torch.save(training_checkpoint(state) if wrapped else state, folder / "checkpoint.pt")
    backbone = build_backbone({"name": "loki"}, root=tmp_path).eval()
    x = images(42)
    assert torch.equal(backbone(x), model.encode_image(backbone.normalise(x), normalize=False))


def test_a_file_by_the_names_of_beit3_gives_the_features_of_its_formulas(tmp_path):
    state = musk_file()
    save_file(state, folder_of("musk", tmp_path / "backbones") / "model.safetensors")
    backbone = build_backbone({"name": "musk"}, root=tmp_path).eval()
    x = images(48)
    expected = musk_feature(state, backbone.normalise(x))
    assert torch.allclose(backbone(x), expected, atol=2e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", ["uni2-h", "dinov3-vitl16"])
def test_files_by_the_networks_own_names(tmp_path, name):
    first = build_backbone({"name": name}, load_weights=False).eval()
    folder = folder_of(name, tmp_path / "backbones")
    if name == "uni2-h":
        torch.save(first.net.state_dict(), folder / "pytorch_model.bin")
    else:
        first.net.save_pretrained(folder)
    second = build_backbone({"name": name}, root=tmp_path).eval()
    x = images(first.input_px)
    assert torch.equal(first(x), second(x))
    assert second.weights.hub_id == SMALL[name].hub_id


def test_the_file_is_known_by_its_hash(tmp_path, caplog):
    file = folder_of("musk", tmp_path / "backbones") / "model.safetensors"
    save_file(musk_file(), file)
    with caplog.at_level(logging.INFO):
        taken = build_backbone({"name": "musk"}, root=tmp_path).weights
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (taken.file, taken.hub_id, taken.sha256) == ("model.safetensors", "xiangjx/musk", digest)
    assert taken.bytes == file.stat().st_size
    assert digest in caplog.text
    assert build_backbone({"name": "musk"}, root=tmp_path, load_weights=False).weights is None
    save_file(musk_file(seed=1), file)
    assert build_backbone({"name": "musk"}, root=tmp_path).weights.sha256 != digest


def test_halves_are_loaded_in_full_precision_and_apart_from_the_file(tmp_path):
    first = build_backbone({"name": "uni2-h"}, load_weights=False)
    file = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in first.net.state_dict().items()}, file)
    second = build_backbone({"name": "uni2-h", "weights": str(file)})
    assert {parameter.dtype for parameter in second.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in second.parameters())
    assert second.weights.hub_id == ""
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.fill_(7.0)
    assert torch.equal(load_file(file)["norm.weight"], torch.ones(48).half())


def test_weights_none_is_a_random_start(tmp_path):
    backbone = build_backbone({"name": "musk", "weights": "none"}, root=tmp_path)
    assert backbone.weights is None
    assert not any(parameter.is_meta for parameter in backbone.parameters())


def test_a_timm_file_is_loaded_without_its_classifier(tmp_path):
    import timm

    whole = timm.create_model("test_resnet", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "weights.bin")
    backbone = build_backbone({**TINY_CNN, "weights": str(tmp_path / "weights.bin")}).eval()
    x = images(64)
    assert torch.equal(backbone.spatial(x), whole.eval().forward_features(backbone.normalise(x)))


def test_a_network_with_tables_of_its_own_is_loaded(tmp_path):
    settings = {"name": "timm:vit_base_patch16_rope_reg1_gap_256", "input_px": 64}
    settings["kwargs"] = {"img_size": 64, "embed_dim": 48, "depth": 1, "num_heads": 3}
    first = build_backbone(settings).eval()
    assert set(dict(first.net.named_buffers())) - set(first.net.state_dict())
    torch.save(first.net.state_dict(), tmp_path / "weights.bin")
    second = build_backbone({**settings, "weights": str(tmp_path / "weights.bin")}).eval()
    assert torch.equal(first(images(64)), second(images(64)))


@pytest.mark.parametrize("name", ["folder", "transformers"])
def test_a_saved_folder_gives_the_same_features(tmp_path, name):
    first = build_backbone(TINY_DINO).eval()
    first.net.save_pretrained(tmp_path / "context")
    place = str(tmp_path / "context")
    described = {"name": "folder", "path": place} if name == "folder" else {"name": f"transformers:{place}"}
    second = build_backbone({**described, "input_px": 32}).eval()
    x = images(32)
    assert torch.equal(first(x), second(x))
    assert torch.equal(first(x), first.net(pixel_values=first.normalise(x)).pooler_output)
    assert second.weights.file == "model.safetensors"
    assert place not in str(second.settings["config"])


def test_a_folder_that_is_gone_is_not_needed_for_a_checkpoint(tmp_path):
    build_backbone(TINY_DINO).net.save_pretrained(tmp_path / "context")
    for described in ({"name": "folder", "path": "context"}, {"name": "transformers:context"}):
        first = build_backbone({**described, "input_px": 32}).eval()
        (tmp_path / "context").rename(tmp_path / "gone")
        second = build_backbone(first.settings, load_weights=False).eval()
        (tmp_path / "gone").rename(tmp_path / "context")
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(images(32)), second(images(32)))


def test_a_folder_tells_side_and_normalisation(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=48, patch_size=8
    )
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"height": 48, "width": 48}, "image_mean": [0.5, 0.5, 0.4], "image_std": [0.5, 0.25, 0.5]}'
    )
    backbone = build_backbone({"name": f"transformers:{tmp_path}"}).eval()
    assert backbone.input_px == 48
    assert torch.allclose(backbone.mean.flatten(), torch.tensor([0.5, 0.5, 0.4]))
    assert torch.allclose(backbone.std.flatten(), torch.tensor([0.5, 0.25, 0.5]))
    x = images(48)
    hidden = model.vit(pixel_values=backbone.normalise(x)).last_hidden_state
    assert torch.equal(backbone.spatial(x), hidden)
    own = build_backbone({"name": f"transformers:{tmp_path}", "mean": [0.1, 0.2, 0.3]})
    assert torch.allclose(own.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_a_folder_of_clip_gives_image_embeddings(tmp_path):
    model = clip_model()
    model.save_pretrained(tmp_path)
    backbone = build_backbone({"name": f"transformers:{tmp_path}"}).eval()
    x = images(96)
    own = model.get_image_features(pixel_values=backbone.normalise(x)).pooler_output
    assert torch.equal(backbone(x), own)


def test_a_backbone_of_the_hub_by_its_id(tmp_path):
    folder = tmp_path / "backbones" / "someone" / "small"
    build_backbone(TINY_DINO).net.save_pretrained(folder)
    backbone = build_backbone({"name": "transformers:someone/small", "input_px": 32}, root=tmp_path)
    assert backbone.weights.hub_id == "someone/small"
    assert backbone.prefix_tokens == 5


# Where weights are looked for


def test_weights_are_found_in_the_users_folder_first_then_in_the_studys_then_in_the_cache(tmp_path, monkeypatch):
    def put(file: Path, seed: int) -> Path:
        file.parent.mkdir(parents=True)
        save_file(musk_file(seed), file)
        return file

    cache = tmp_path / "cache" / "models--xiangjx--musk"
    cached = put(cache / "snapshots" / "abc" / "model.safetensors", 1)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    spec = REGISTRY["musk"]
    assert locate(spec.hub_id, spec.files, tmp_path) == cached
    study = put(tmp_path / "backbones" / "xiangjx" / "musk" / "model.safetensors", 2)
    assert locate(spec.hub_id, spec.files, tmp_path) == study
    kept = put(tmp_path / "kept" / "model.safetensors", 3)
    (tmp_path / "mine" / "xiangjx").mkdir(parents=True)
    (tmp_path / "mine" / "xiangjx" / "musk").symlink_to(kept.parent)
    monkeypatch.setenv("NUCLASS_BACKBONES", str(tmp_path / "mine"))
    assert find_weights(spec, tmp_path) == tmp_path / "mine" / "xiangjx" / "musk"
    loaded = build_backbone({"name": "musk"}, root=tmp_path)
    assert torch.equal(loaded.net.cls_token, musk_file(3)["beit3.vision_embed.cls_token"])


def test_an_empty_folder_of_the_user_does_not_hide_the_studys(tmp_path, monkeypatch):
    (tmp_path / "mine" / "MahmoodLab" / "UNI2-h").mkdir(parents=True)
    folder = folder_of("uni2-h", tmp_path / "backbones")
    (folder / "pytorch_model.bin").touch()
    monkeypatch.setenv("NUCLASS_BACKBONES", str(tmp_path / "mine"))
    assert find_weights(REGISTRY["uni2-h"], tmp_path) == folder


@pytest.mark.parametrize(("name", "gated"), [("uni2-h", True), ("plip", False), ("loki", True)])
def test_missing_weights_say_what_to_do(tmp_path, monkeypatch, name, gated):
    monkeypatch.setenv("NUCLASS_BACKBONES", str(tmp_path / "mine"))
    hub_id = REGISTRY[name].hub_id
    text = refusal({"name": name}, root=tmp_path)
    gate = f"accept the licence on the page {hub_id} of the hub, then " if gated else ""
    folder = tmp_path / "backbones" / hub_id
    assert text.splitlines() == [
        f"The weights of {name} are missing",
        f"  where:      {tmp_path / 'mine' / hub_id} or {folder}",
        "  found:      none there; HF_HUB_OFFLINE is set",
        f"  expected:   {' or '.join(REGISTRY[name].files)}",
        f"  to mend it: {gate}run: hf download {hub_id} --local-dir {folder}   "
        "(or set NUCLASS_BACKBONES to the folder that holds your backbones)",
    ]
    with pytest.raises(UserError, match=f"hf download {hub_id}"):
        find_weights(REGISTRY[name], tmp_path)


# Files that are not what they should be


def test_a_truncated_safetensors_file_is_named(tmp_path):
    file = folder_of("musk", tmp_path / "backbones") / "model.safetensors"
    save_file(musk_file(), file)
    file.write_bytes(file.read_bytes()[:-1000])
    text = refusal({"name": "musk"}, root=tmp_path)
    assert "A backbone's weight file is cut short or damaged" in text
    assert f"{file.stat().st_size:,} bytes" in text
    assert f"download it again: hf download xiangjx/musk --local-dir {file.parent}" in text


@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.999])
def test_a_truncated_file_of_torch_is_named(tmp_path, keep):
    file = folder_of("loki", tmp_path / "backbones") / "checkpoint.pt"
    torch.save(training_checkpoint(coca_model().state_dict()), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    text = refusal({"name": "loki"}, root=tmp_path)
    assert "A backbone's weight file is cut short or damaged" in text
    assert "download it again: hf download WangGuangyuLab/Loki" in text


def test_a_page_instead_of_a_file_is_named(tmp_path):
    (folder_of("plip", tmp_path / "backbones") / "pytorch_model.bin").write_text("<html>Sign in</html>")
    assert "cut short or damaged" in refusal({"name": "plip"}, root=tmp_path)


def test_a_pointer_instead_of_a_file_is_named(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder_of("plip", tmp_path / "backbones") / "pytorch_model.bin").write_text(pointer)
    text = refusal({"name": "plip"}, root=tmp_path)
    assert "only a pointer to the weights" in text
    assert "to mend it: hf download vinid/plip" in text


class Intruder:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return exec, ("open('ran', 'w').close()",)


@pytest.mark.parametrize("old", [True, False])
def test_objects_in_a_file_are_not_run(tmp_path, old):
    file = folder_of("plip", tmp_path / "backbones") / "pytorch_model.bin"
    torch.save({**clip_file(), "extra": Intruder()}, file, _use_new_zipfile_serialization=not old)
    text = refusal({"name": "plip"}, root=tmp_path)
    assert "holds more than tensors and is not read" in text
    assert "found:      the object exec" in text
    assert ".safetensors" in text
    assert not Path("ran").exists()


def test_an_old_file_of_torch_is_read(tmp_path):
    file = folder_of("plip", tmp_path / "backbones") / "pytorch_model.bin"
    torch.save(clip_file(), file, _use_new_zipfile_serialization=False)
    assert build_backbone({"name": "plip"}, root=tmp_path).weights.file == "pytorch_model.bin"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.ones(3)], "'list' is no tensor by name"),
        ({"state_dict": {"epoch": 3}}, "'epoch' is no tensor by name"),
        ({"epoch": 3}, "'epoch' is no tensor by name"),
    ],
)
def test_a_file_without_weights_is_named(tmp_path, content, found):
    torch.save(content, folder_of("plip", tmp_path / "backbones") / "pytorch_model.bin")
    text = refusal({"name": "plip"}, root=tmp_path)
    assert "does not hold weights" in text
    assert found in text


CHANGES = {
    "missing": lambda state, name: state.pop(name),
    "another shape": lambda state, name: state.update({name: state[name][:1].clone()}),
    "unknown": lambda state, name: state.update({"adapter.down.weight": torch.ones(2)}),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
@pytest.mark.parametrize(
    ("name", "make", "tensor", "told"),
    [
        ("plip", clip_file, "vision_model.encoder.layers.1.mlp.fc1.weight", None),
        ("loki", lambda: dict(coca_model().state_dict()), "visual.attn_pool.query", "attn_pool.query"),
        ("musk", musk_file, "beit3.encoder.layers.1.ffn.A.fc1.weight", "blocks.1.mlp.fc1.weight"),
        ("musk", musk_file, "beit3.encoder.layers.1.self_attn.k_proj.A.weight", "blocks.1.attn.q"),
        ("uni2-h", lambda: random_state("uni2-h"), "blocks.1.mlp.fc1.weight", None),
        ("dinov3-vitl16", lambda: random_state("dinov3-vitl16"), "model.layer.1.mlp.up_proj.weight", None),
    ],
)
def test_every_tensor_must_fit(tmp_path, name, make, tensor, told, change):
    state = {key: value.clone() for key, value in make().items()}
    CHANGES[change](state, tensor)
    spec = REGISTRY[name]
    file = folder_of(name, tmp_path / "backbones") / spec.files[-1]
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    text = refusal({"name": name}, root=tmp_path)
    assert "A backbone's weights do not fit its architecture" in text
    assert str(file) in text
    expected = "adapter.down.weight" if change == "unknown" else told or tensor
    assert f"of another shape, the first: {expected}" in text


def test_the_first_misfit_is_told_with_its_shapes(tmp_path):
    state = random_state("uni2-h")
    state["norm.weight"] = torch.ones(7)
    torch.save(state, tmp_path / "weights.bin")
    text = refusal({"name": "uni2-h", "weights": str(tmp_path / "weights.bin")})
    assert "found:      1 tensors missing, unknown or of another shape" in text
    assert "the first: norm.weight (of shape (7,), not (48,))" in text


def test_only_the_named_parts_are_left_out():
    spec = REGISTRY["musk"]
    dropped = musk_file().keys() - {"beit3.vision_embed.cls_token"}
    kept = take(musk_file(), "same", spec.left_out)
    assert {name.rsplit(".", 1)[0] for name in dropped - kept.keys() if ".B." not in name} == {
        "beit3.text_embed",
        "beit3.vision_embed",
        "vision_head",
        "language_head",
        "logit_scale",
    }
    assert not any(".B." in name for name in kept)
    assert all(".A." in name or "vision_embed" in name for name in kept)
    assert set(take(clip_file(), "clip", REGISTRY["plip"].left_out)) == set(random_state("plip"))
    assert set(take(coca_model().state_dict(), "coca", REGISTRY["loki"].left_out)) == set(random_state("loki"))


def test_a_config_of_another_architecture_is_refused(tmp_path):
    folder = folder_of("dinov3-vitl16", tmp_path / "backbones")
    build_backbone({"name": "dinov3-vitl16"}, load_weights=False).net.save_pretrained(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    told = refusal({"name": "dinov3-vitl16"}, root=tmp_path)
    assert "config.json beside a backbone's weights is of another architecture" in told
    assert "num_attention_heads: 4" in told


def test_other_faults_of_files_and_folders(tmp_path):
    assert "weight file is missing" in refusal({**TINY_CNN, "weights": "nowhere.bin"})
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal({"name": f"transformers:{tmp_path / 'empty'}"})
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "dinov3_vit"}')
    assert "A backbone's folder has no weights" in refusal({"name": f"transformers:{tmp_path / 'empty'}"})
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "newest_vit"}')
    assert "not one that transformers knows" in refusal({"name": f"transformers:{tmp_path / 'empty'}"})
    (tmp_path / "empty" / "config.json").write_text("{")
    assert "not one that transformers knows" in refusal({"name": f"transformers:{tmp_path / 'empty'}"})


def test_the_hash_on_record_is_that_of_the_cache_or_of_the_download(tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()
    blob = tmp_path / "models--vinid--plip" / "blobs" / digest
    link = tmp_path / "models--vinid--plip" / "snapshots" / "0123abc" / "model.safetensors"
    for folder in (blob.parent, link.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(b"weights")
    link.symlink_to(blob)
    assert told_sha256(link) == digest
    assert check_sent(link, "vinid/plip")
    small = blob.with_name("a" * 40)
    small.write_bytes(b"weights")
    assert told_sha256(small) is None, "a small file's name is the hash of git"
    assert not check_sent(small, "vinid/plip")
    folder = tmp_path / "backbones"
    (folder / "deeper").mkdir(parents=True)
    note = folder / ".cache/huggingface/download/deeper/model.bin.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"0123abc\n{digest}\n1764.0\n")
    (folder / "deeper/model.bin").write_bytes(b"weights")
    assert told_sha256(folder / "deeper/model.bin") == digest


def test_the_record_is_written_as_the_hubs_library_writes_it(tmp_path):
    from huggingface_hub._local_folder import write_download_metadata

    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_download_metadata(tmp_path, "model.safetensors", "0123abc", digest)
    assert told_sha256(tmp_path / "model.safetensors") == digest


def test_a_file_that_is_not_what_the_hub_sent_is_refused_when_it_is_loaded(tmp_path):
    folder = folder_of("plip", tmp_path / "backbones")
    file = folder / "model.safetensors"
    save_file({**clip_file(), **clip_model().state_dict()}, file)
    note = folder / ".cache/huggingface/download/model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"0123abc\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n1764.0\n")
    build_backbone({"name": "plip"}, root=tmp_path)
    bad = bytearray(file.read_bytes())
    bad[-1] ^= 1
    file.write_bytes(bad)
    message = refusal({"name": "plip"}, root=tmp_path)
    assert "A weight file is not what the hub sent" in message
    assert f"rm {file} && hf download vinid/plip --local-dir {folder}" in message
    assert build_backbone({"name": "plip", "weights": str(file)}, root=tmp_path).weights, "one's own are as they are"
