"""Checkpoints in the form of the original's release, made here by its facts, become ours and give the same logits."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuclass.cli import main
from nuclass.core.errors import UserError
from nuclass.models.backbones import build_backbone
from nuclass.models.gate import mix
from nuclass.training import imported
from nuclass.training.branches import Branches, state_hash
from nuclass.training.checkpoint import load_checkpoint, restore_gate, restore_global, restore_local
from nuclass.training.config import Predict
from nuclass.training.context import context_backbone
from nuclass.training.import_checkpoint import import_checkpoint
from nuclass.training.imported import network_shapes, read_original, sort_original

DINO = {
    "name": "dinov3",
    "input_px": 64,
    "config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_register_tokens": 4,
        "patch_size": 16,
        "image_size": 64,
        "layerscale_value": 0.3,
    },
}
SMALL = {"local": {"name": "timm:test_vit", "input_px": 160}, "context": DINO}
CLASSES = ["Acinar", "B_Cell", "Fibroblast"]
ORGANS = ["heart", "liver", "lung", "ovary"]
SIZES = {"width": 64, "context": 32, "organs": 4, "embed": 6, "hidden": 40, "project": 12, "classes": 3, "gate": 10}
EXACT = {"width": 1536, "context": 1024, "organs": 8, "embed": 64, "hidden": 1024, "project": 512, "classes": 16}


def two_layers(first: int, hidden: int, last: int, dropout: bool = False) -> nn.Sequential:
    layers = [nn.Linear(first, hidden), nn.SiLU(), nn.Linear(hidden, last)]
    return (
        nn.Sequential(nn.Dropout(0.2), *layers[:2], nn.Dropout(0.2), layers[2]) if dropout else nn.Sequential(*layers)
    )


def projection(width: int, to: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, to))


class Local(nn.Module):
    """Path local by its facts: norm, FiLM of the organ's vector, head."""

    def __init__(self, backbone: nn.Module | None, s: dict[str, int]) -> None:
        super().__init__()
        if backbone is not None:
            self.uni = backbone
        self.feat_norm = nn.LayerNorm(s["width"])
        self.tissue_embedding = nn.Embedding(s["organs"], s["embed"])
        self.film = two_layers(s["embed"], max(64, 2 * s["embed"]), 2 * s["width"])
        self.head = two_layers(s["width"], s["hidden"], s["classes"], dropout=True)

    def forward(self, features: Tensor, organ: Tensor) -> tuple[Tensor, Tensor]:
        gamma, beta = self.film(self.tissue_embedding(organ)).chunk(2, -1)
        features = self.feat_norm(features) * (1 + gamma) + beta
        return features, self.head(features)


class Global(nn.Module):
    """Path global by its facts; ``whole`` with what only its own training uses."""

    def __init__(self, backbone: nn.Module, context: nn.Module, s: dict[str, int], whole: bool) -> None:
        super().__init__()
        self.uni, self.dino = backbone, context
        self.proj_uni = projection(s["width"], s["project"])
        self.proj_ctx = projection(s["context"], s["project"])
        self.head = two_layers(2 * s["project"], 2 * s["project"], s["classes"], dropout=True)
        if whole:
            self.ctx_film_uni = two_layers(s["context"], 2 * s["context"], 2 * s["width"])
            self.a_head = Local(None, s)
            self.inner_gate = two_layers(2 * s["project"] + 1, 256, 1)

    def forward(self, u: Tensor, c: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        features = torch.cat([self.proj_uni(u), alpha * self.proj_ctx(c)], -1)
        return features, self.head(features)


class Gate(nn.Module):
    """The gate by its facts, with both models in it."""

    def __init__(self, local: Local, wide: Global, s: dict[str, int], q: int, layers: tuple[int, int]) -> None:
        super().__init__()
        self.A, self.B = local, wide
        self.gate_proj_A = projection(s["width"], q)
        self.gate_proj_B = projection(2 * s["project"], q)
        self.gate_mlp = nn.Sequential(
            nn.Linear(2 * q + 8, layers[0]),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(layers[0], layers[1]),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(layers[1], 1),
        )

    def forward(self, fa: Tensor, fb: Tensor, za: Tensor, zb: Tensor) -> Tensor:
        pa, pb = za.softmax(-1), zb.softmax(-1)
        n = torch.tensor(float(pa.shape[-1])).log()
        (a1, a2), (b1, b2) = (p.sort(-1, descending=True).values[:, :2].T for p in (pa, pb))
        ha, hb = (-(p * (p + 1e-12).log()).sum(-1) / n for p in (pa, pb))
        d = b1 - a1
        statistics = torch.stack([a1, b1, ha, hb, a1 - a2, b1 - b2, d, d.abs()], -1)
        g = self.gate_mlp(torch.cat([F.silu(self.gate_proj_A(fa)), F.silu(self.gate_proj_B(fb)), statistics], -1))[:, 0]
        g = torch.sigmoid(g)[:, None]
        return (1 - g) * pa + g * pb


def net(settings: dict[str, Any]) -> nn.Module:
    return build_backbone(dict(settings), load_weights=False).net


def build(model: str) -> nn.Module:
    """Build one of the three with random weights, small."""
    torch.manual_seed(sum(map(ord, model)))
    local = Local(net(SMALL["local"]), SIZES)
    wide = Global(net(SMALL["local"]), net(DINO), SIZES, whole=model == "global")
    return {"local": local, "global": wide, "gate": Gate(local, wide, SIZES, 5, (9, 7))}[model].eval()


def save(path: Path, module: nn.Module, hyper: Any = None, rename: Callable[[str], str] = lambda key: key) -> Path:
    """Write a Lightning checkpoint."""
    state = {rename(key): value for key, value in module.state_dict().items()}
    torch.save(
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": state,
            "hyper_parameters": hyper if hyper is not None else {"class_names": CLASSES, "num_tissues": 4},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        },
        path,
    )
    return path


def take(path: Path, model: str, out: Path, **options: Any) -> list[str]:
    return import_checkpoint(path, model, out, organs=ORGANS, backbones=SMALL, **options)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(4, 3, 160, 160, generator=generator), torch.rand(4, 3, 64, 64, generator=generator)


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> tuple[Gate, Path, list[str]]:
    """The gate's file with both models, and where it was taken in."""
    folder = tmp_path_factory.mktemp("gate")
    module = build("gate")
    told = take(save(folder / "gate.ckpt", module, {}), "gate", folder / "out", classes=CLASSES)
    return module, folder / "out", told


def test_the_local_model_gives_the_same_logits(tmp_path):
    module = build("local")
    told = take(save(tmp_path / "a.ckpt", module), "local", tmp_path)
    data = load_checkpoint(tmp_path / "local" / "best.ckpt", "local")
    images, _ = inputs()
    organ = torch.tensor([0, 1, 2, 3])
    model = restore_local(data)
    with torch.inference_mode():
        features, logits = module(model.backbone(images), organ)
        ours = model(images, organ)
        assert torch.allclose(ours.logits, logits, atol=1e-6)
        assert torch.allclose(ours.features, features, atol=1e-6)
        plain = module.uni(model.backbone.normalise(images))
        assert torch.allclose(model.backbone(images), plain, atol=1e-6), "the weights of the file"
    assert data["classes"] == CLASSES
    assert data["organs"] == [*ORGANS, "unknown"]
    assert data["mpp"] == 0.25
    assert data["protocol"] == {"inverted_mpp": True}
    assert data["temperature"] == 1.0
    assert not any(line.startswith("Dropped") for line in told)


def test_the_unknown_organ_is_the_mean_of_the_others(tmp_path):
    module = build("local")
    told = take(save(tmp_path / "a.ckpt", module), "local", tmp_path)
    rows = load_checkpoint(tmp_path / "local" / "best.ckpt", "local")["state"]["film.embedding.weight"]
    assert torch.equal(rows[:-1], module.tissue_embedding.weight)
    assert torch.allclose(rows[-1], module.tissue_embedding.weight.mean(0))
    assert any("mean of the others" in line for line in told)


@pytest.mark.parametrize(("reset", "alpha"), [(False, 1.0), (True, 0.25)])
def test_the_global_model_gives_the_same_logits(tmp_path, reset, alpha):
    module = build("global")
    told = take(save(tmp_path / "b.ckpt", module), "global", tmp_path, alpha_reset=reset)
    data = load_checkpoint(tmp_path / "global" / "best.ckpt", "global")
    model = restore_global(data)
    images, wide = inputs()
    context = context_backbone(settings_of(data), Path(data["context_folder"])).eval()
    with torch.inference_mode():
        u, c = model.backbone(images), context(wide)
        assert torch.allclose(c, module.dino(context.normalise(wide)).last_hidden_state[:, 0], atol=1e-6)
        features, logits = module(u, c, alpha)
        ours = model(images, c)
    assert torch.allclose(ours.logits, logits, atol=1e-6)
    assert torch.allclose(ours.features, features, atol=1e-6)
    text = "\n".join(told)
    assert "FiLM of the context, never used: 4 tensors" in text
    assert "the inner gate, a training aid: 4 tensors" in text
    assert text.count("copy in the global model of") == 4
    assert f"Alpha: {alpha:g}" in text


def settings_of(data: dict[str, Any]) -> Any:
    from nuclass.training.config import Context, from_plain

    return from_plain(Context, data["context"], "the checkpoint")


def test_the_gates_file_gives_three_models_that_belong_together(gate):
    module, out, _ = gate
    paths = {name: out / name / "best.ckpt" for name in ("local", "global", "gate")}
    data = load_checkpoint(paths["gate"], "gate")
    branches = Branches(paths["local"], paths["global"], Predict(accelerator="cpu"))
    assert data["parents"] == {"local": state_hash(branches.model_a), "global": state_hash(branches.model_b)}
    images, wide = inputs()
    organ = torch.tensor([3, 1, 0, 2])
    with torch.inference_mode():
        c = wide.mean((1, 2, 3), keepdim=True)[:, 0, 0] * torch.arange(32)
        pixels = branches.model_a.backbone.normalise(images)
        fa, za = module.A(module.A.uni(pixels), organ)
        fb, zb = module.B(module.B.uni(pixels), c)
        expected = module(fa, fb, za, zb)
        a, b = branches.model_a(images, organ), branches.model_b(images, c)
        p_a, p_b = a.logits.softmax(1), b.logits.softmax(1)
        g = torch.sigmoid(restore_gate(data)(a.features, b.features, p_a, p_b))
        assert not torch.allclose(module.A.uni(pixels), module.B.uni(pixels), atol=1e-2)
        assert torch.allclose(mix(p_a, p_b, g), expected, atol=1e-5)
    assert load_checkpoint(paths["global"], "global")["features"]["input_px"] == 64 * 384 // 512


def test_features_of_the_context_in_the_file_fit_the_global_model(gate):
    from nuclass.data.study import Study
    from nuclass.training.embedding import Embedding, feature_key

    _, out, _ = gate
    data = load_checkpoint(out / "global" / "best.ckpt", "global")
    network = context_backbone(settings_of(data), Path(data["context_folder"]))
    how = Embedding(window="global", read_level=1, pooling="cls", precision="bf16-mixed")
    study = Study([], out, data["mpp"], data["windows"])
    assert feature_key(network, study, how, "dinov3").to_dict() == data["features"]


def exact(model: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the published models, by their facts."""
    with torch.device("meta"):
        uni, dino = net({"name": "uni2-h"}), net({"name": "dinov3-vitl16"})
        local = Local(uni, EXACT)
        wide = Global(uni, dino, EXACT, whole=model == "global")
        module = {"local": local, "global": wide, "gate": Gate(local, wide, EXACT, 128, (256, 64))}[model]
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_the_published_sizes_are_recognised():
    shapes = {model: exact(model) for model in ("local", "global", "gate")}
    count = lambda names: sum(torch.Size(shapes["gate"][key]).numel() for key in names)  # noqa: E731
    assert len(shapes["local"]) == 354
    found = sort_original(shapes["local"], "local", "there")
    assert len(found.states["local"]) == 354
    assert not found.dropped
    whole = sort_original(shapes["gate"], "gate", "there")
    parts = whole.states
    assert len(parts["local"]) == 354
    assert len(parts["global"]) + len(parts["context"]) == 770
    assert len(parts["context"]) == 415
    gate = [key for key in shapes["gate"] if key.startswith("gate_")]
    assert sorted(parts["gate"].values()) == sorted(gate)
    assert len(gate) == 4 + 4 + 6
    assert count(gate) == 417_409
    assert {key.split(".")[0] for key in parts["local"].values()} == {"A"}
    assert {key.split(".")[0] for key in parts["global"].values()} == {"B"}
    alone = sort_original(shapes["global"], "global", "there")
    assert alone.dropped["FiLM of the context, never used"] == (4, 8_393_728)
    assert len(alone.states["global"]) + len(alone.states["context"]) == 770
    assert sum(tensors for tensors, _ in alone.dropped.values()) + 770 == len(shapes["global"])


def test_backbones_have_the_published_number_of_tensors():
    assert len(network_shapes({"name": "uni2-h"})) == 343
    assert len(network_shapes({"name": "dinov3-vitl16"})) == 415


def test_names_of_compiled_modules_and_older_transformers_are_read(tmp_path):
    module = build("gate")

    def rename(key: str) -> str:
        key = key.replace(".model.layer.", ".layer.").replace("A.head.", "A.head._orig_mod.")
        return key.replace("gate_mlp.", "gate_mlp._orig_mod.")

    take(save(tmp_path / "c.ckpt", module, {}, rename), "gate", tmp_path / "out", classes=CLASSES)
    plain = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    names = sort_original(plain, "gate", "there", SMALL).states["gate"]
    state = load_checkpoint(tmp_path / "out" / "gate" / "best.ckpt", "gate")["state"]
    assert state.keys() == names.keys()
    assert all(torch.equal(state[ours], module.state_dict()[theirs]) for ours, theirs in names.items())


def changed(model: str, change: Callable[[dict[str, tuple[int, ...]]], None]) -> str:
    """Return what is told of the small file after a change of its shapes."""
    shapes = {name: tuple(value.shape) for name, value in build(model).state_dict().items()}
    change(shapes)
    with pytest.raises(UserError) as caught:
        sort_original(shapes, model, "there", SMALL)
    return str(caught.value)


def test_what_is_missing_left_over_or_of_another_shape_is_named():
    assert "uni.blocks.0.attn.qkv.bias is missing" in changed("local", lambda s: s.pop("uni.blocks.0.attn.qkv.bias"))
    assert "uni.norm.weight is (63,)" in changed("local", lambda s: s.update({"uni.norm.weight": (63,)}))
    assert "does not hold the organ's embedding" in changed("local", lambda s: s.pop("tissue_embedding.weight"))
    assert "aux (linear 7 x 9)" in changed("local", lambda s: s.update({"aux.weight": (7, 9), "aux.bias": (7,)}))
    assert "temperature" in changed("local", lambda s: s.update({"temperature": ()}))
    assert "uni.extra (linear 3 x 5)" in changed(
        "local", lambda s: s.update({"uni.extra.weight": (3, 5), "uni.extra.bias": (3,)})
    )
    other = {"B.head.4.weight": (2, 24), "B.head.4.bias": (2,)}
    assert "linear 2 x H" in changed("gate", lambda s: s.update(other)), "both models have the same classes"
    assert "the local backbone 2 times" in told_of("local", "gate")


def told_of(file: str, model: str) -> str:
    shapes = {name: tuple(value.shape) for name, value in build(file).state_dict().items()}
    with pytest.raises(UserError) as caught:
        sort_original(shapes, model, "there", SMALL)
    return str(caught.value)


def test_two_parts_that_fit_are_not_guessed():
    told = changed("local", lambda s: s.update(twice_of(s)))
    assert "It is not certain which tensors are the head of the local model" in told
    assert "head.1 + head.4; head_2.1 + head_2.4" in told


def twice_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {key.replace("head.", "head_2."): value for key, value in shapes.items() if key.startswith("head.")}


def test_parts_without_a_telling_name_need_a_word(tmp_path):
    file = save(tmp_path / "a.ckpt", build("local"), rename=lambda key: key.replace("head.", "out."))
    with pytest.raises(UserError) as caught:
        take(file, "local", tmp_path)
    assert "out.1 (linear 40 x 64), out.4 (linear 3 x 40)" in str(caught.value)
    assert not (tmp_path / "local").exists()
    told = take(file, "local", tmp_path, by_shape=True)
    assert any(line.startswith("By shape alone: the head of the local model") for line in told)


def test_classes_are_asked_for_and_never_guessed(tmp_path):
    file = save(tmp_path / "a.ckpt", build("local"), {})
    with pytest.raises(UserError, match="does not name its 3 classes"):
        take(file, "local", tmp_path)
    with pytest.raises(UserError, match="number of classes"):
        take(file, "local", tmp_path, classes=["a", "b"])
    named = save(tmp_path / "n.ckpt", build("local"))
    with pytest.raises(UserError, match="not those of the file"):
        take(named, "local", tmp_path, classes=["Acinar", "B_Cell", "Mast_Cell"])
    with pytest.raises(UserError, match="number of organs"):
        import_checkpoint(named, "local", tmp_path, backbones=SMALL)


class Evil:
    """Pickles to a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_no_code_of_a_file_is_run(tmp_path, capsys):
    file = save(tmp_path / "e.ckpt", build("local"), {"class_names": CLASSES, "config": Evil()})
    with pytest.raises(UserError, match="more than tensors and plain values") as caught:
        read_original(file)
    assert "__builtin__.print is neither" in str(caught.value)
    assert "run" not in capsys.readouterr().out


def test_namespaces_are_read_as_plain_values(tmp_path):
    inner = argparse.Namespace(lr=1e-3, root=Path("/data/x"), nested=argparse.Namespace(a=[1]))
    _, hyper = read_original(
        save(tmp_path / "n.ckpt", build("local"), argparse.Namespace(class_names=CLASSES, config=inner))
    )
    assert hyper["class_names"] == CLASSES
    root = hyper["config"].pop("root")
    assert root.endswith("data/x")
    assert isinstance(root, str)
    assert hyper["config"] == {"lr": 1e-3, "nested": {"a": [1]}}


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_both_formats_of_torch_are_read_without_their_code(tmp_path, zipped, capsys):
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    weight = {"a.weight": torch.arange(3.0)}
    for file, hyper in ((good, {"lr": 1.0}), (bad, {"lr": Evil()})):
        content = {"state_dict": weight, "hyper_parameters": hyper}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
    state, hyper = read_original(good)
    assert torch.equal(state["a.weight"], weight["a.weight"])
    assert hyper == {"lr": 1.0}
    with pytest.raises(UserError, match="more than tensors and plain values"):
        read_original(bad)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"hello",
        lambda data: data[: len(data) // 2],
        lambda data: data[:200] + b"\xff" * 50 + data[250:],
        lambda data: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNtR.",
    ],
    ids=["empty", "text", "cut", "changed", "nonsense"],
)
def test_damaged_files_are_not_taken_for_dangerous_ones(tmp_path, damage):
    file = save(tmp_path / "a.ckpt", build("local"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_original(file)
    assert f"{file.stat().st_size:,} bytes" in str(caught.value)
    assert "mmap" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda value: value * float("nan"), "not finite"), (lambda value: value.to(torch.int64), "int64")],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, change, told):
    module = build("local")
    file = tmp_path / "a.ckpt"
    state = module.state_dict()
    state["head.4.weight"] = change(state["head.4.weight"])
    torch.save({"state_dict": state, "hyper_parameters": {"class_names": CLASSES}}, file)
    with pytest.raises(UserError, match="no weight") as caught:
        take(file, "local", tmp_path)
    assert "head.4.weight" in str(caught.value)
    assert told in str(caught.value)
    assert not (tmp_path / "local").exists()


def test_other_files_are_told(tmp_path):
    with pytest.raises(UserError, match="missing"):
        read_original(tmp_path / "none.ckpt")
    torch.save({"format": 2, "model": "local", "state": {}}, tmp_path / "ours.ckpt")
    with pytest.raises(UserError, match="needs no import"):
        read_original(tmp_path / "ours.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of Lightning"):
        read_original(tmp_path / "empty.ckpt")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nuclass.training.import_checkpoint.import_checkpoint", lambda *a, **k: [repr((a, k))])
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"B": 1, "A": 0}))
    command = ["import-checkpoint", "x.ckpt", "--model", "local", "--out", "o", "--organs", "lung, ovary"]
    assert main([*command, "--classes", str(names)]) == 0
    told = capsys.readouterr().out
    assert "'classes': ['A', 'B']" in told
    assert "'organs': ['lung', 'ovary']" in told
    names.write_text(json.dumps({"B": 1, "A": 2}))
    assert main([*command, "--classes", str(names)]) == 1
    assert "numbers from 0" in capsys.readouterr().err


def test_the_roles_cover_all_of_our_tensors():
    assert imported.BACKBONES["local"] == {"name": "uni2-h"}
    for model in ("local", "global", "gate"):
        assert {role.name for role in imported.ROLES[model] if not role.dropped} <= imported._OURS.keys()
