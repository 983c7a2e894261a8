"""The parts of training by themselves: targets, pooling, blocks, metrics, augmentation, rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.models.backbones import build_backbone
from nuclass.training import config as settings
from nuclass.training.composition import neighbourhoods, soft_cross_entropy
from nuclass.training.config import Local, Optimizer, from_plain, load_models, parse_models, to_plain
from nuclass.training.embedding import pool_tokens
from nuclass.training.metrics import calibration_error, f1_per_class, macro_f1
from nuclass.training.optim import decays, parameter_groups, warmup_factor


def test_no_cell_of_val_is_counted_for_training():
    frame = pd.DataFrame({"slide": "a", "x_px": [100.0, 110.0, 100.0, 900.0], "y_px": [100.0, 100.0, 125.0, 900.0]})
    tokens, around = neighbourhoods(frame, np.array([0, 1, 1, 0]), 2, window_px=64, side=4, radii_px=[12.0, 30.0])
    # the first cell sees the second 10 px to its right and the third 25 px below, never itself
    assert tokens[0, :, 2, 2].tolist() == [0, 1]
    assert tokens[0, :, 3, 2].tolist() == [0, 1]
    assert int(tokens[0].sum()) == 2
    assert around[0].tolist() == [[0, 1], [0, 2]]
    assert int(tokens[3].sum()) == 0


def test_soft_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [5.0, 0.0], [9.0, 9.0]])
    counts = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    loss = soft_cross_entropy(logits, counts, torch.tensor([1.0, 3.0]))
    # shares (1/2, 3/2) and (1, 0); every log probability that counts is -ln 2
    assert float(loss) == pytest.approx(np.log(2))


def test_pooling_leaves_registers_out():
    tokens = torch.arange(1 + 2 + 16).float()[None, :, None].expand(1, -1, 3)
    assert pool_tokens(tokens, 3, "cls")[0].tolist() == [0, 0, 0]
    assert pool_tokens(tokens, 3, "mean")[0, 0] == np.arange(3, 19).mean()
    assert pool_tokens(tokens, 3, "center")[0, 0] == 3 + np.mean([5, 6, 9, 10])
    assert pool_tokens(tokens, 3, "cls+mean").shape == (1, 6)


def test_metrics_by_hand():
    labels, predictions = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    f1 = f1_per_class(labels, predictions, 3)
    assert f1[:2].tolist() == pytest.approx([2 / 3, 4 / 5])
    assert torch.isnan(f1[2])
    assert macro_f1(labels, predictions, 3) == pytest.approx((2 / 3 + 4 / 5) / 2)
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
    # bin of 0.9: half right, gap 0.4 twice; bin of 0.7: right, gap 0.3
    assert calibration_error(p, torch.tensor([0, 1, 1]), 10) == pytest.approx((0.8 + 0.3) / 3)


def test_decay_leaves_norms_biases_and_tokens_alone():
    net = torch.nn.ModuleDict(
        {"backbone": build_backbone({"name": "timm:test_vit", "input_px": 160}), "head": torch.nn.Linear(64, 2)}
    )
    groups = parameter_groups(net, Optimizer(lr_head=1e-3, lr_backbone=1e-4, llrd=0.5, weight_decay=0.1))
    size = {id(p): name for name, p in net.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = size[id(parameter)]
            matrix = parameter.ndim >= 2 and "pos_embed" not in name and "token" not in name
            assert group["weight_decay"] == (0.1 if matrix else 0.0)
            assert decays(name, parameter) == matrix
    assert sum(len(group["params"]) for group in groups) == len(size)
    depth = len(net["backbone"].net.blocks)
    rates = sorted({group["lr"] for group in groups})
    assert rates == pytest.approx(sorted([1e-3, *(1e-4 * 0.5**k for k in range(depth + 1))]))


def test_uni2_h_gets_few_groups_with_the_published_rates():
    with torch.device("meta"):
        net = torch.nn.ModuleDict({"backbone": build_backbone({"name": "uni2-h"}, load_weights=False)})
    groups = parameter_groups(net, Optimizer(lr_backbone=3e-6, llrd=0.85))
    assert len(groups) <= 50
    assert min(group["lr"] for group in groups) == pytest.approx(3e-6 * 0.85**24)


def test_warmup_then_constant_or_cosine():
    constant = Optimizer(warmup_steps=4)
    assert [warmup_factor(step, constant, 100) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = Optimizer(warmup_steps=0, schedule="cosine")
    assert warmup_factor(0, cosine, 100) == 1.0
    assert warmup_factor(50, cosine, 100) == pytest.approx(0.5)
    assert warmup_factor(100, cosine, 100) == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_the_model_files_are_valid(name):
    models = parse_models(load_models(f"config/models/{name}.yaml"))
    assert from_plain(Local, to_plain(models.local), "there") == models.local
    with torch.device("meta"):
        build_backbone(models.local.backbone, load_weights=False)
        build_backbone(models.context.backbone, load_weights=False)


def test_all_faults_of_a_model_file_come_at_once():
    with pytest.raises(UserError) as caught:
        parse_models(
            {"local": {"trainer": {"epoch": 3, "batch_size": "many"}}, "gaet": {}, "context": {"pooling": "max"}}
        )
    text = str(caught.value)
    for word in (
        "local.trainer.epoch",
        "'max_epochs'",
        "local.trainer.batch_size",
        "gaet",
        "'gate'",
        "context.pooling",
    ):
        assert word in text


def test_numbers_written_as_text_are_understood():
    assert parse_models({"local": {"optimizer": {"lr_head": "3e-4"}}}).local.optimizer.lr_head == 3e-4
    assert settings.Gate().loss.pos_weight == "auto"


RANGES = [
    ("local.trainer.batch_size", [1, 4096], [0, -1, 1.5, True]),
    ("local.trainer.max_epochs", [1], [0]),
    ("local.trainer.patience", [1], [0]),
    ("local.trainer.validate_every", [0.25, 1, 3], [0, -1, 1.5, float("nan")]),
    ("local.trainer.devices", [1, [0, 1], "auto"], [0, [], [0, 0], [-1], "many"]),
    ("local.trainer.num_nodes", [1, 2], [0]),
    ("local.trainer.save_every_min", [0.5], [0]),
    ("local.trainer.logger", ["csv", "wandb"], ["mlflow", 3]),
    ("local.trainer.precision", ["auto", "16-mixed"], ["fp16"]),
    ("local.trainer.balance", [0, 1], [-0.1, 1.1]),
    ("local.optimizer.lr_head", [0, 1e-3, "1e-3"], [-1e-3, float("inf"), "fast"]),
    ("local.optimizer.llrd", [0.85, 1], [0, 1.1]),
    ("local.model.dropout", [0, 0.99], [1, -0.1]),
    ("local.loss.label_smoothing", [0, 0.5], [1]),
    ("local.loss.beta", [0, 0.9999], [1.0]),
    ("local.read_level", [0, 3], [-1]),
    ("local.augment.rotate", [0, 180], [-1]),
    ("local.augment.zoom", [0, 0.5], [1, -0.1]),
    ("local.augment.blur", [0, 1], [1.01]),
    ("global.loss.gamma", [0, 2], [-1]),
    ("global.alpha.start", [0, 1], [1.5]),
    ("gate.select", [0.01, 0.99], [0, 1]),
    ("gate.loss.pos_weight", ["auto", 0.5], ["many", 0]),
    ("gate.model.hidden", [[], [64, 32]], [[0], [1.5], 64]),
    ("gate.model.project", [0, 8], [-1]),
    ("gate.joint.max_epochs", [0, 3], [-1]),
    ("predict.workers", [0, 4], [-1]),
    ("context.pretrain.radii_um", [[48]], [[], [0]]),
]


def nested(path: str, value: object) -> dict:
    *sections, key = path.split(".")
    data: dict = {key: value}
    for name in reversed(sections):
        data = {name: data}
    return data


@pytest.mark.parametrize(("path", "good", "bad"), RANGES, ids=[row[0] for row in RANGES])
def test_every_setting_has_its_range(path, good, bad):
    for value in good:
        parse_models(nested(path, value))
    for value in bad:
        with pytest.raises(UserError) as caught:
            parse_models(nested(path, value))
        assert path in str(caught.value), value


def test_the_schema_has_the_same_ranges():
    """The study's file is checked by the schema, `nuclass train` by the types: one source, one verdict."""
    import jsonschema
    import yaml

    schema = yaml.safe_load(Path("config/schemas/models.schema.yaml").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    for path, good, bad in RANGES:
        for value in good:
            if not isinstance(value, str) or path.rsplit(".", 1)[-1] not in ("lr_head",):
                assert validator.is_valid(nested(path, value)), (path, value)
        told_by_types_alone = (1.5, float("nan"), float("inf"), [], [0, 0])
        for value in bad:
            if value not in told_by_types_alone and value == value:
                assert not validator.is_valid(nested(path, value)), (path, value)


def numbers(kind: type, path: str = "") -> list[str]:
    """Return the numbers among the settings that have no range."""
    from nuclass.training.parsing import bare, section_of, section_types

    found = []
    for key, hint in section_types(kind).items():
        plain, limits = bare(hint)
        if section_of(hint):
            found += numbers(section_of(hint), f"{path}{key}.")
        elif plain in (int, float) and limits is None:
            found.append(path + key)
    return found


def test_no_number_is_without_a_range():
    assert numbers(settings.Models) == []


def test_a_fault_has_the_line_of_its_own_file(tmp_path):
    (tmp_path / "models.yaml").write_text("local: local.yaml\ngate:\n  select: 2\n")
    (tmp_path / "local.yaml").write_text("# mine\ntrainer:\n  batch_size: 0\n  epochs: 3\n")
    with pytest.raises(UserError) as caught:
        load_models(tmp_path / "models.yaml")
    told = str(caught.value)
    assert "3 faults" in told
    assert f"{tmp_path / 'local.yaml'}, line 3" in told
    assert f"{tmp_path / 'local.yaml'}, line 4" in told
    assert f"{tmp_path / 'models.yaml'}, line 3" in told
    assert "local.trainer.epochs: unknown key. Did you mean 'max_epochs'?" in told


def test_the_study_tells_the_line_of_a_sections_own_file(tmp_path):
    """Also where the whole study is checked, by the schema."""
    import shutil

    from nuclass.core.config import load_study, merge_files

    for name in ("config", "resources"):
        shutil.copytree(name, tmp_path / name, ignore=shutil.ignore_patterns("bundles", "truth"))
    file = tmp_path / "config" / "models" / "path_local.yaml"
    lines = file.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("  max_epochs:"))
    lines[number] = "  max_epochs: 0"
    file.write_text("\n".join(lines))
    files = ["config/config.yaml", "config/paper.yaml"]
    with pytest.raises(UserError) as caught:
        load_study(merge_files(files, tmp_path), tmp_path, files)
    told = str(caught.value)
    assert f"path_local.yaml, line {number + 1}, key local.trainer.max_epochs" in told
    assert "at least 1" in told


@pytest.mark.parametrize(
    "name", ["demo", "paper", "path_context", "path_local", "path_global", "path_gate", "path_baselines"]
)
def test_every_setting_in_the_files_has_a_remark(name):
    for number, line in enumerate(Path(f"config/models/{name}.yaml").read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        value = text.partition(":")[2].strip()
        if text and not text.startswith("#") and value and not value.startswith(("#", "*", "&")):
            assert "#" in text, f"{name}.yaml, line {number}: {text}"


@pytest.mark.parametrize("name", ["context", "local", "global", "gate", "baselines"])
def test_the_papers_files_state_every_setting(name):
    import yaml

    from nuclass.training.parsing import section_of, section_types

    def lacking(kind: type, data: dict, path: str) -> list[str]:
        found = []
        for key, hint in section_types(kind).items():
            inner = section_of(hint)
            if key not in data:
                found.append(path + key)
            elif inner and data[key] is not None:
                found += lacking(inner, data[key], f"{path}{key}.")
        return found

    data = yaml.safe_load(Path(f"config/models/path_{name}.yaml").read_text(encoding="utf-8"))
    kind = section_types(settings.Models)[name]
    # A flaw of the original, switched on by the protocol.
    assert [path for path in lacking(kind, data, "") if not path.endswith("black_corners")] == []


def test_a_backbones_settings_are_checked_with_file_and_line(tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text("local:\n  backbone:\n    name: uni2-h\n    weigths: none\n    input_px: wide\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_models(file)
    told = str(error.value)
    assert "local.backbone.weigths: unknown key. Did you mean 'weights'?" in told
    assert f"{file}, line 4" in told
    assert "local.backbone.input_px: not a valid value" in told
    assert f"{file}, line 5" in told
