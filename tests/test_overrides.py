"""Settings from files and the command line: paths, ends, values, the original's names, what is shown."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from nuclass.core.errors import UserError
from nuclass.core.protocol import SWITCHES, Protocol
from nuclass.training.config import load_models
from nuclass.training.overrides import ORIGINAL, USES, apply_overrides, find_setting, parse_override
from nuclass.training.resolve import resolve

CONFIG = Path("config/models")
DEMO, PAPER = CONFIG / "demo.yaml", CONFIG / "paper.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1e-4", 1e-4),
        ("a=-2.5E3", -2500.0),
        ("a=[1e-4, 2]", [1e-4, 2]),
        ("a={b: 3e-5}", {"b": 3e-5}),
        ("a=16-mixed", "16-mixed"),
        ("a=null", None),
        ("a=off", False),
        ("a=[0,1]", [0, 1]),
        ("a=b=c", "b=c"),
    ],
)
def test_values_are_yaml_and_1e_4_is_a_number(text, value):
    key, read = parse_override(text)
    assert (key, read) == ("a", value)
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["max_epochs", "=3", "max_epochs=", "hidden=[1"])
def test_what_is_no_setting_is_told(text):
    with pytest.raises(UserError) as caught:
        parse_override(text)
    assert f"-o {text}" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "key", "path"),
    [
        ("local", "max_epochs", "local.trainer.max_epochs"),
        ("local", "trainer.max_epochs", "local.trainer.max_epochs"),
        ("local", "local.trainer.max_epochs", "local.trainer.max_epochs"),
        ("local", "lr_head", "local.optimizer.lr_head"),
        ("local", "devices", "local.trainer.devices"),
        ("local", "model.dropout", "local.model.dropout"),
        ("local", "backbone.kwargs.channels", "local.backbone.kwargs.channels"),
        ("local", "local.backbone.name", "local.backbone.name"),
        ("local", "label_in_gate", "protocol.label_in_gate"),
        ("global", "patience", "global.trainer.patience"),
        ("global", "pooling", "context.pooling"),
        ("global", "context.batch_size", "context.batch_size"),
        ("global", "context.pretrain.trainer.max_epochs", "context.pretrain.trainer.max_epochs"),
        ("gate", "trainer.max_epochs", "gate.trainer.max_epochs"),
        ("gate", "joint.max_epochs", "gate.joint.max_epochs"),
        ("gate", "batch_size", "gate.trainer.batch_size"),
        ("gate", "soft_k", "gate.loss.soft_k"),
        ("gate", "augment.rotate", "global.augment.rotate"),
    ],
)
def test_a_key_is_a_full_path_or_the_end_of_one(model, key, path):
    assert ".".join(find_setting(key, model)) == path


def test_an_ambiguous_end_lists_its_paths():
    with pytest.raises(UserError) as caught:
        find_setting("max_epochs", "gate")
    assert "trainer.max_epochs, joint.max_epochs" in str(caught.value)


def test_only_what_training_reads_can_be_set():
    with pytest.raises(UserError, match=r"There is no setting 'trainer\.accelerator'"):
        find_setting("trainer.accelerator", "gate")


@pytest.mark.parametrize(
    ("model", "key", "told"),
    [
        ("local", "max_epoch", "Did you mean 'trainer.max_epochs'?"),
        ("local", "optimiser.lr_head", "Did you mean 'optimizer.lr_head'?"),
        ("global", "contxt.pooling", "Did you mean 'context.pooling'?"),
        ("local", "gate.trainer.max_epochs", "The training of the local model does not read 'gate.trainer.max_epochs'"),
        ("local", "protocol.label_in_gat", "Did you mean 'protocol.label_in_gate'?"),
        ("local", "zzz", "There is no setting 'zzz'."),
    ],
)
def test_an_unknown_key_names_the_nearest(model, key, told):
    with pytest.raises(UserError) as caught:
        find_setting(key, model)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("model", "key", "ours"),
    [
        ("local", "batch_size", "trainer.batch_size"),
        ("global", "num_workers", "trainer.workers"),
        ("local", "freeze_backbone_epochs", "optimizer.freeze_epochs"),
        ("gate", "lr_gate", "optimizer.lr"),
        ("gate", "gate_pos_weight", "loss.pos_weight"),
    ],
)
def test_keys_of_the_original_name_ours_and_what_differs(model, key, ours):
    with pytest.raises(UserError) as caught:
        find_setting(key, model)
    told = str(caught.value)
    assert f"'{key}' of the original is called '{ours}' here" in told
    assert ORIGINAL[key][model][1] in told


def test_what_is_told_of_the_originals_keys_is_there():
    for key, models in ORIGINAL.items():
        for model, (ours, differs) in models.items():
            assert differs
            if ours:
                assert find_setting(ours, model)[0] == model, key
            else:
                with pytest.raises(UserError, match="no counterpart"):
                    find_setting(key, model)


def test_overrides_change_nothing_else_and_later_ones_win():
    data = load_models(DEMO)
    before = yaml.safe_dump(data)
    changed, origin = apply_overrides(
        data, ["max_epochs=20", "optimizer={lr_head: 1e-4, llrd: 0.5}", "optimizer.lr_head=1e-5"], "local"
    )
    assert yaml.safe_dump(data) == before
    assert changed["local"]["trainer"] == data["local"]["trainer"] | {"max_epochs": 20}
    assert changed["local"]["optimizer"] == data["local"]["optimizer"] | {"lr_head": 1e-5, "llrd": 0.5}
    assert origin[("local", "optimizer", "lr_head")] == "-o optimizer.lr_head=1e-5"
    assert {name: changed[name] for name in ("context", "global", "gate")} == {
        name: data[name] for name in ("context", "global", "gate")
    }


def test_a_setting_inside_a_section_that_is_off_is_refused():
    with pytest.raises(UserError, match=r"context\.pretrain is no section"):
        apply_overrides(load_models(PAPER), ["context.pretrain.seed=3"], "global")


def test_the_protocol_is_a_word_or_switches():
    def switches(*overrides: str, study: Protocol | None = None) -> dict[str, bool]:
        return resolve("global", DEMO, protocol=study, overrides=overrides).sections()["protocol"]

    assert switches() == {}
    assert switches("protocol.label_in_gate=true") == {"label_in_gate": True}
    released = switches("protocol=released", "protocol.label_in_gate=false")
    assert "moving_teacher" in released
    assert "label_in_gate" not in released
    assert "frozen_heads" not in released, "a switch of the gate alone"
    assert switches(study=Protocol(alpha_reset=True)) == {"alpha_reset": True}
    assert switches("protocol=corrected", study=Protocol(alpha_reset=True)) == {}
    with pytest.raises(UserError, match="no switch of this name"):
        switches("protocol={label_in_gat: true}")


def test_switches_without_effect_are_told(caplog):
    with caplog.at_level("WARNING"):
        resolve("local", DEMO, overrides=["protocol.no_buffer=true", "protocol.black_corners=true"])
    assert "no_buffer" in caplog.text
    assert "black_corners" not in caplog.text


def test_faults_name_the_override_or_the_file_and_line(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("trainer:\n  max_epochs: 0\n  epoch: 3\n")
    with pytest.raises(UserError) as caught:
        resolve("local", DEMO, file=own, overrides=["lr_head=-1", "dropout=1"])
    told = str(caught.value)
    for part in (
        "4 faults",
        "local.trainer.max_epochs: out of range",
        f"{own}, line 2",
        "local.trainer.epoch: unknown key. Did you mean 'max_epochs'?",
        f"{own}, line 3",
        "-o lr_head=-1",
        "at least 0 and below 1",
    ):
        assert part in told


@pytest.mark.parametrize(("model", "file"), [*itertools.product(USES, (None, DEMO, PAPER))])
def test_what_is_printed_can_be_given_back(model, file, tmp_path):
    overrides = ["seed=7", "protocol.decay_everywhere=true"]
    first = resolve(model, DEMO, file=file, overrides=overrides)
    (tmp_path / "printed.yaml").write_text(first.render())
    again = resolve(model, PAPER if file == DEMO else DEMO, file=tmp_path / "printed.yaml")
    printed = yaml.safe_load(first.render())
    assert set(printed) == set(USES[model])
    assert set(printed["protocol"]) == set(SWITCHES)
    assert again.typed.protocol == first.typed.protocol
    for name in set(USES[model]) - {"protocol"}:
        part = printed[name]
        assert {key: again.sections()[name][key] for key in part} == {key: first.sections()[name][key] for key in part}
    assert "seed: 7 # -o seed=7" in first.render()
    assert "# default" in first.render()


def test_printed_settings_say_file_and_line():
    lines = resolve("local", DEMO, file=CONFIG / "path_local.yaml").render().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("lr_backbone:")]
    place = line.split("# ", 1)[1]
    path, number = place.split(", line ")
    assert Path(path) == CONFIG / "path_local.yaml"
    assert "lr_backbone: 3.0e-6" in Path(path).read_text().splitlines()[int(number) - 1]


def test_a_section_file_brings_the_sections_of_the_file_that_names_it(tmp_path):
    alone = resolve("global", DEMO, file=CONFIG / "path_global.yaml")
    assert alone.typed.context.backbone["name"] == "dinov3-vitl16", "of paper.yaml, not of the demo"
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {project: 16}\n")
    assert resolve("global", DEMO, file=mine).typed.context.backbone["name"] == "dinov3", "nothing else names it"


def test_a_file_of_another_section_is_told():
    with pytest.raises(UserError) as caught:
        resolve("local", DEMO, file=CONFIG / "path_gate.yaml")
    assert "another section: gate" in str(caught.value)
    assert f"nuclass train gate --config {CONFIG / 'path_gate.yaml'}" in str(caught.value)


DOCUMENT = Path("docs/commands.md").read_text(encoding="utf-8")


def test_the_document_has_every_key_of_the_original():
    for key, models in ORIGINAL.items():
        (row,) = [line for line in DOCUMENT.splitlines() if line.startswith("|") and f"`{key}`" in line]
        for ours, _ in models.values():
            assert not ours or f"`{ours}`" in row, key


def test_every_command_of_the_document_is_there():
    import re
    import shlex

    from nuclass.cli import _parser

    spans = re.findall(r"`(nuclass [a-z][^`]*)`", DOCUMENT)
    blocks = [line.strip() for line in DOCUMENT.splitlines() if line.startswith("    nuclass ")]
    commands = [text for text in spans + blocks if "COMMAND" not in text]
    assert len(commands) > 20
    known = _parser().format_help()
    for text in commands:
        words = shlex.split(text)[1:]
        assert f"\n    {words[0]}" in known, text
        if any(word.startswith("-") for word in words):
            options = _parser().parse_args(words)
            for override in getattr(options, "override", []):
                find_setting(parse_override(override)[0], options.model)


def test_sections_that_share_an_anchor_are_changed_one_by_one():
    shared = {"blur": 0.5, "rotate": 0.0}
    data = {name: {"augment": shared} for name in ("context", "local", "global")}
    changed, _ = apply_overrides(data, ["augment.blur=0.1"], "global")
    assert changed["global"]["augment"]["blur"] == 0.1
    assert changed["context"]["augment"]["blur"] == 0.5
    assert shared["blur"] == 0.5
    settings = resolve("global", DEMO, overrides=["augment.stain_scale=0.9"]).typed
    assert settings.global_.augment.stain_scale == 0.9
    assert settings.context.augment.stain_scale == settings.context.pretrain.augment.stain_scale == 0.3


def test_only_what_a_section_sets_comes_from_the_command_line():
    lines = resolve("local", DEMO, overrides=["optimizer={lr_head: 1e-4}"]).render().splitlines()
    assert "    lr_head: 0.0001 # -o optimizer={lr_head: 1e-4}" in lines
    (other,) = [line for line in lines if "lr_backbone" in line]
    assert str(DEMO) in other


def test_another_backbone_does_not_inherit_the_arguments_of_the_one_before():
    typed = resolve("local", DEMO, overrides=["backbone={name: uni2-h}"]).typed
    assert typed.local.backbone == {"name": "uni2-h"}
    typed = resolve("local", DEMO, overrides=["backbone.kwargs.stem_width=12"]).typed
    own = resolve("local", DEMO).typed.local.backbone["kwargs"]
    assert own["channels"]
    assert typed.local.backbone["kwargs"] == {**own, "stem_width": 12}


@pytest.mark.parametrize("key", ["backbone.nmae=uni2-h", "context.backbone.wieghts=none"])
def test_an_unknown_key_of_a_backbone_is_told_before_any_work(key):
    with pytest.raises(UserError) as caught:
        resolve("global" if "context" in key else "local", DEMO, overrides=[key])
    assert "Did you mean" in str(caught.value)
    assert f"-o {key}" in str(caught.value)


def test_black_corners_are_a_switch_and_no_strength(tmp_path):
    assert find_setting("black_corners", "local") == ("protocol", "black_corners")
    assert resolve("local", DEMO, overrides=["black_corners=true"]).typed.protocol.black_corners
    file = tmp_path / "mine.yaml"
    file.write_text("augment:\n  black_corners: true\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"local\.augment\.black_corners: a switch of the protocol") as caught:
        resolve("local", DEMO, file=file)
    assert f"{file}, line 2" in str(caught.value)


def test_switches_of_the_configuration_are_not_told_to_come_from_the_models_file(tmp_path):
    lines = resolve("local", DEMO, protocol=Protocol(decay_everywhere=True)).render().splitlines()
    assert "  decay_everywhere: true # protocol of the configuration" in lines
    lines = resolve("local", DEMO, overrides=["protocol.decay_everywhere=true"]).render().splitlines()
    assert "  decay_everywhere: true # -o protocol.decay_everywhere=true" in lines
    assert "  test_as_val: false # protocol of the configuration" in lines


def test_the_gate_says_why_it_has_no_devices():
    with pytest.raises(UserError, match="kept outputs"):
        find_setting("trainer.devices", "gate")


def test_a_folder_in_place_of_a_file_is_told():
    with pytest.raises(UserError, match="A folder stands where a file is wanted"):
        resolve("local", DEMO, file=CONFIG)
