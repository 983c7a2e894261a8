"""Runs under changed settings: what each changes, and what it shares."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuclass.core.config import load_study, merge_files
from nuclass.core.errors import UserError
from nuclass.core.names import MODELS
from nuclass.core.protocol import RELEASED, STAGES, SWITCHES, Protocol
from nuclass.core.variants import (
    AUDIT,
    CONTEXT,
    GUIDANCE,
    LEAVE_OUT,
    OF_EVALUATION,
    ORGAN,
    REFERENCE,
    SEEDS,
    Variants,
    build_variants,
    organ_slides,
    unshared,
)
from test_workflow import REPOSITORY

ORGANS = {"ovary_1": "ovary", "lung_1": "lung", "breast_1": "breast"}
ASKED: dict[str, Any] = {"seeds": 3, "context_sizes": 2, "leave_out": 1, "switches": "all"}
ALL_PARTS = ["local", "global", "gate", "predict_local", "predict_global", "predict_gate"]


@pytest.fixture(scope="module")
def study():
    return load_study(merge_files(["config/config.yaml"], REPOSITORY), REPOSITORY, ["config/config.yaml"])


@pytest.fixture(scope="module")
def models(study) -> dict[str, Any]:
    return unshared(study.models)


def build(models: dict[str, Any], short: dict[str, Any] | None = None, **changes: Any) -> Variants:
    given: dict[str, Any] = {
        "protocol": Protocol(),
        "windows": {"local": 224, "global": 1024},
        "organs": ORGANS,
        "cohort_organs": ["lung", "pancreas", "ovary"],
        "test": 0.0,
        "cut": True,
    }
    asked = {key: changes.pop(key) for key in list(changes) if key in ASKED}
    return build_variants(ASKED | asked, models=models, short_models=short or models, **given | changes)


def test_what_changes_nothing_is_the_study_itself(models):
    found = build(models)
    same = [REFERENCE, "seed_42", "organ_film", "guidance_label", "context_1024", "test_as_val"]
    assert [found.own(name) for name in same] == [[]] * len(same)
    assert {found.place(REFERENCE, stage) for stage in ("splits", "context", "local", "predict_gate")} == {"results"}


def test_shorter_settings_make_a_reference_that_the_others_share(models):
    short = copy.deepcopy(models)
    short["local"]["trainer"]["max_epochs"] = 1
    found = build(models, short)
    assert found.own(REFERENCE) == ALL_PARTS
    assert found.place(REFERENCE, "context") == "results"
    assert found.own("seed_42") == found.own("organ_film") == []
    assert found.place("label_in_gate", "local") == f"results/variants/{REFERENCE}"
    assert found.place("label_in_gate", "predict_local") == f"results/variants/{REFERENCE}"


def test_a_study_with_flaws_has_a_corrected_reference(models):
    found = build(models, protocol=Protocol(decay_everywhere=True))
    assert found.own(REFERENCE) == ALL_PARTS
    assert found.own("decay_everywhere") == []


def test_seeds_differ_in_the_seed_alone(models):
    runs = build(models, seeds=4).group(SEEDS)
    assert [run.value for run in runs] == ["42", "43", "44", "45"]
    for number, run in enumerate(runs):
        assert [run.models[name]["seed"] for name in MODELS] == [models[name]["seed"] + number for name in MODELS]
        changed = copy.deepcopy(dict(run.models))
        for name in MODELS:
            changed[name]["seed"] = models[name]["seed"]
        assert changed == models


def test_organ_is_used_in_three_ways_by_the_local_model_alone(models):
    found = build(models)
    assert [run.models["local"]["model"]["organ"] for run in found.group(ORGAN)] == ["film", "concat", "none"]
    assert found.own("organ_concat") == ["local", "predict_local"]


def test_an_organ_left_out_is_in_no_training_slide(models):
    found = build(models, leave_out=2)
    runs = found.group(LEAVE_OUT)
    values = [f"{organ} {mode}" for organ in ("lung", "ovary") for mode in ("film", "concat", "none")]
    assert [run.value for run in runs] == values
    assert runs[0].slides == ("ovary_1", "breast_1")
    assert found.own("without_ovary_film") == ["local", "predict_local"]
    assert found.place("organ_film", "local") == "results"
    assert next(run.name for run in build(models, leave_out=["breast"]).group(LEAVE_OUT)) == "without_breast_film"
    assert not build(models, leave_out=0).group(LEAVE_OUT)
    assert not build(models, organs={"lung_1": "lung"}).group(LEAVE_OUT), "nothing would be left to train on"


@pytest.mark.parametrize(("name", "hint"), [("lungs", " Did you mean 'lung'?"), ("pancreas", "")])
def test_an_organ_that_cannot_be_left_out_is_named(models, name, hint):
    with pytest.raises(UserError) as caught:
        build(models, leave_out=[name])
    assert str(caught.value).startswith(f"An organ to leave out is not one of several in the training slides.{hint}")
    assert caught.value.found == name


def test_guidance_by_label_by_entropy_and_none(models):
    losses = [run.models["global"]["loss"] for run in build(models).group(GUIDANCE)]
    assert [(loss["doubt"], loss["gamma"]) for loss in losses] == [("label", 2.0), ("entropy", 2.0), ("label", 0.0)]
    assert build(models).own("guidance_none") == ["global", "gate", "predict_global", "predict_gate"]


def test_smaller_contexts_are_seen_with_as_many_pixels(models):
    found = build(models, context_sizes=5)
    runs = found.group(CONTEXT)
    assert [run.window for run in runs] == [1024, 512, 256], "128 px is smaller than the local window"
    assert [run.models["context"]["read_level"] for run in runs] == [3, 2, 1]
    assert [run.models["context"]["pretrain"]["radii_um"] for run in runs] == [[40, 112], [20, 56], [10, 28]]
    assert "local" not in found.own("context_512")
    assert "context" in found.own("context_512")


def test_a_switch_makes_its_stages_again_and_what_follows(models):
    joint = copy.deepcopy(models)
    joint["gate"]["joint"]["max_epochs"] = 2
    found = build(joint, test=0.1)
    first = {"slides": "build", "splits": "split"}
    for run in found.group(AUDIT):
        if run.value == RELEASED or run.value == "unguarded_class_weights":
            continue
        own = found.own(run.name)
        stages = {stage for stage, names in STAGES.items() if run.value in names} - {"views", "predict", *first}
        assert stages <= set(own), run.name
        assert set(found.own(run.name)) == set(own)
        before = {"local": ["local", "context"], "gate": ["local", "global", "context"], "global": ["local", "context"]}
        for stage in ("gate", "global", "local"):
            if stages and stages <= {stage}:
                assert not set(before[stage][(stage == "local") :]) & set(own), run.name
    assert found.own("no_buffer")[0] == "splits"
    assert found.own("inverted_mpp")[:2] == ["slides", "splits"]
    assert found.own("first_organ") == ["predict_local", "predict_global", "predict_gate"]


def test_all_flaws_of_training_are_audited_and_released_has_all(models):
    runs = build(models).group(AUDIT)
    assert [run.value for run in runs] == [*(name for name in SWITCHES if name not in OF_EVALUATION), RELEASED]
    assert runs[-1].protocol == Protocol(**dict.fromkeys(SWITCHES, True))
    some = build(models, switches=["no_buffer", "closed_set"]).group(AUDIT)
    assert [run.value for run in some] == ["no_buffer", RELEASED]


def test_a_switch_that_cannot_act_trains_nothing(models):
    found = build(models)
    assert [found.own(name) for name in ("test_as_val", "frozen_heads", "unguarded_class_weights")] == [[], [], []]
    assert found.own(RELEASED)
    assert build(models, test=0.1).own("test_as_val")
    assert build(models, test=0.1).own("unguarded_class_weights") == [], "never by itself"
    assert found.own("inverted_mpp")
    assert build(models, cut=False).own("inverted_mpp") == []


def test_a_gradient_through_no_weight_changes_nothing(models):
    plain = unshared(models)
    plain["global"]["loss"]["gamma"] = 0.0
    assert build(plain).own("undetached_weight") == []
    assert build(plain).own("moving_teacher")


def test_predictions_of_another_precision_are_not_shared(models):
    exact = unshared(models)
    exact["predict"]["precision"] = "32-true"
    assert build(models, exact).own(REFERENCE) == ["global", "gate", "predict_local", "predict_global", "predict_gate"]
    slower = unshared(models)
    slower["predict"]["batch_size"] = 7
    assert build(models, slower).own(REFERENCE) == []


def test_an_unknown_switch_is_named(models):
    with pytest.raises(UserError, match=r"no switch of this name\. Did you mean 'no_buffer'\?"):
        build(models, switches=["no_bufer"])


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]
    return found


def another(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, list):
        return [*value, 1.0]
    return value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else f"another than {value}"


READERS = {
    "context": {"pretrain", "context", "gate_context", "global"},
    "local": {"local"},
    "global": {"global"},
    "gate": {"gate"},
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_setting_makes_again_what_reads_it(models, data):
    """A key that missed a setting would take another run's files for its own."""
    paths = [path for path in leaves({key: models[key] for key in READERS}) if path[-1] != "accelerator"]
    path = data.draw(st.sampled_from(paths))
    changed = copy.deepcopy(models)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = another(place[path[-1]])
    study, other = (build(tree).members[REFERENCE] for tree in (models, changed))
    different = {stage for stage in study.keys if study.keys[stage] != other.keys[stage]}
    direct = {"pretrain"} if path[:2] == ("context", "pretrain") else READERS[path[0]]
    assert direct <= different
    assert {"gate", "predict_gate"} <= different
    untouched = {"slides", "splits"} | ({"local", "predict_local"} if path[0] != "local" else {"context", "pretrain"})
    assert not untouched & different


def test_scale_window_and_slides_count(models):
    run = build(models).members[REFERENCE]
    for changed, stages in (
        (replace(run, window=512), {"pretrain", "context", "gate_context", "global", "gate"}),
        (replace(run, slides=("ovary_1",)), {"pretrain", "local", "global", "gate", "context"}),
    ):
        different = {stage for stage in run.keys if run.keys[stage] != changed.keys[stage]}
        assert stages <= different


def test_the_demo_and_the_paper_study_have_the_same_comparisons(study):
    files = ["config/config.yaml", "config/paper.yaml"]
    paper = load_study(merge_files(files, REPOSITORY), REPOSITORY, files).variants
    kinds = {run.group for run in study.variants.members.values()}
    assert {run.group for run in paper.members.values()} == kinds
    assert paper.own(REFERENCE) == []
    assert study.variants.own(REFERENCE)


def test_sections_that_share_an_anchor_change_apart(tmp_path):
    both = {"strength": 1}
    copied = unshared({"local": {"augment": both}, "global": {"augment": both}})
    copied["global"]["augment"]["strength"] = 2
    assert copied["local"]["augment"]["strength"] == 1


def test_no_patient_is_judged_who_was_trained_on_with_another_organ() -> None:
    rows = {"ovary_h": ("ovary", "p3"), "ovary_1": ("ovary", "p1"), "ovary_2": ("ovary", ""), "lung_1": ("lung", "p1"),
            "lung_2": ("lung", "")}  # fmt: skip
    slides = {slide: {"organ": organ, "patient": patient} for slide, (organ, patient) in rows.items()}
    training = ["ovary_1", "ovary_2", "lung_1", "lung_2"]
    assert organ_slides("ovary", slides, training) == ["ovary_h", "ovary_2"]
    with pytest.raises(UserError, match="No slide tells how models without an organ"):
        organ_slides("ovary", {s: slides[s] for s in ("ovary_1", "lung_1")}, ["ovary_1", "lung_1"])
