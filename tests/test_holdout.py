"""Whole slides, patients and organs held out: by name, or in folds; with every mistake told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from nuclass.core.config import load_study, merge_files
from nuclass.core.errors import UserError
from nuclass.core.holdout import apply_holdout, deal_groups
from nuclass.core.split_settings import split_faults, within_slide
from nuclass.splits import SplitConfig

REPOSITORY = Path(__file__).parent.parent
CONFIG = Path("config/config.yaml")
DEFAULTS = {"folds": 0, "fold": 1, "hold_out": "none", "leave_out": [], "seed": 42}
SHEET = pd.DataFrame(
    [
        ("lung_1", "lung", "train", "p1"),
        ("lung_2", "lung", "train", "p2"),
        ("ovary_1", "ovary", "train", "p3"),
        ("ovary_2", "ovary", "train", "p3"),
        ("colon_1", "colon", "train", "p4"),
        ("breast_1", "breast", "train", "p5"),
        ("heart_h", "heart", "cohort", "p6"),
        ("lung_h", "lung", "cohort", "p7"),
    ],
    columns=["slide", "organ", "role", "patient"],
).set_index("slide")


def held(**settings):
    slides = apply_holdout(SHEET, {**DEFAULTS, **settings})
    assert (slides["sheet_role"] == SHEET["role"]).all()
    assert (slides["role"][SHEET["role"] == "cohort"] == "cohort").all()
    return list(slides.index[(slides["role"] == "cohort") & (SHEET["role"] == "train")])


@pytest.mark.parametrize(
    ("settings", "out"),
    [
        ({}, []),
        ({"hold_out": "slide", "leave_out": ["colon_1"]}, ["colon_1"]),
        ({"hold_out": "slide", "leave_out": ["colon_1", "lung_2"]}, ["lung_2", "colon_1"]),
        ({"hold_out": "patient", "leave_out": ["p3"]}, ["ovary_1", "ovary_2"]),
        ({"hold_out": "organ", "leave_out": ["lung"]}, ["lung_1", "lung_2"]),
    ],
)
def test_what_is_named_becomes_a_cohort(settings, out):
    assert held(**settings) == out


@pytest.mark.parametrize(("by", "folds"), [("patient", 2), ("patient", 3), ("patient", 5), ("organ", 2), ("organ", 4)])
def test_folds_hold_out_every_training_slide_once(by, folds):
    parts = [held(hold_out=by, folds=folds, fold=fold) for fold in range(1, folds + 1)]
    assert sorted(slide for part in parts for slide in part) == sorted(SHEET.index[SHEET["role"] == "train"])
    for part in parts:
        names = set(SHEET.loc[part, by])
        assert set(SHEET.index[(SHEET["role"] == "train") & SHEET[by].isin(names)]) == set(part)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 or folds >= 4
    assert parts == [held(hold_out=by, folds=folds, fold=fold) for fold in range(1, folds + 1)]


def test_folds_are_balanced_and_the_seed_deals_them():
    group = pd.Series([f"p{i}" for i in range(12) for _ in range(1 + i % 4)])
    dealt = [deal_groups(group, 3, seed) for seed in range(6)]
    for one in dealt:
        sizes = group.map(one).value_counts()
        assert set(sizes.index) == {1, 2, 3}
        assert sizes.max() - sizes.min() <= 1
    assert len({tuple(one.items()) for one in dealt}) > 1
    assert dealt[2] == deal_groups(group.sample(frac=1, random_state=1), 3, 2)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"hold_out": "organ", "leave_out": ["lnug"]},
            ["it is no organ of the sheet. Did you mean 'lung'?", "colon, breast"],
        ),
        ({"hold_out": "slide", "leave_out": ["lung"]}, ["it is no slide of the sheet.", "out of lung_1, lung_2"]),
        (
            {"hold_out": "organ", "leave_out": ["heart"]},
            ["held out by the sheet already, for its role is cohort.\n", "take it out"],
        ),
        (
            {"hold_out": "organ", "leave_out": ["lung", "ovary", "colon", "breast"]},
            ["Nothing is left to train on", "organs breast, colon, lung, ovary"],
        ),
        (
            {"hold_out": "slide", "leave_out": ["ovary_1"]},
            ["The patient 'p3' would stand on both sides", "ovary_1 out, ovary_2 in training", "hold out by patient"],
        ),
        ({"hold_out": "slide", "folds": 6, "fold": 3}, ["'p3' would stand on both sides"]),
        (
            {"hold_out": "organ", "folds": 5},
            ["more folds than organs", "5 folds; training slides of 4 organs: breast, colon", "to 4"],
        ),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(UserError) as caught:
        held(**settings)
    for part in told:
        assert part in str(caught.value)


def test_an_unknown_patient_is_told():
    slides = SHEET.assign(patient=SHEET["patient"].replace("p4", ""))
    with pytest.raises(UserError, match=r"is not known[\s\S]*colon_1"):
        apply_holdout(slides, {**DEFAULTS, "hold_out": "patient", "leave_out": ["p1"]})
    kept = apply_holdout(slides, {**DEFAULTS, "hold_out": "slide", "leave_out": ["lung_1"]})
    assert kept.loc["lung_1", "role"] == "cohort"


def demo_splits(**settings):
    return {**merge_files([CONFIG], REPOSITORY)["splits"], **settings}


@pytest.mark.parametrize(
    ("settings", "key", "told"),
    [
        ({"hold_out": "organ"}, "hold_out", "nothing says which organ"),
        ({"hold_out": "organ", "leave_out": ["lung"], "folds": 3}, "hold_out", "names and folds both say which"),
        ({"leave_out": ["lung"]}, "leave_out", "but splits.hold_out is none"),
        ({"folds": 1}, "folds", "one fold leaves nothing"),
        ({"folds": 3, "fold": 4}, "fold", "1 to 3, the number of folds"),
        ({"folds": 3, "fold": 0}, "fold", "splits.fold is no fold"),
        ({"fold": 2}, "fold", "splits.folds is 0"),
        ({"folds": 3, "test": 0.1}, "test", "must be 0 with splits.folds"),
        ({"layout": "blocks", "block_um": 512}, "block_um", "set it to 1537.5"),
        ({"layout": "blocks", "block_um": 1500, "buffer_um": 1000}, "block_um", "set it to 6001.5"),
        ({"buffer_um": 100}, "buffer_um", "at least 256 um"),
        ({"val": 0.6, "test": 0.4}, "val", "a sum below 0.9"),
        ({"layout": "block"}, "layout", "Did you mean 'blocks'?"),
    ],
)
def test_settings_that_do_not_fit_together(settings, key, told):
    (fault,) = split_faults(demo_splits(**settings), 256.0, 0.25, lambda path: ".".join(path))
    assert fault.where == f"splits.{key}"
    assert told in str(fault)


@pytest.mark.parametrize(
    ("settings", "key", "told"), [({"folds": 3}, "folds", "folds 3"), ({"layout": "blocks"}, "layout", "layout blocks")]
)
def test_settings_that_do_not_fit_the_released_box(settings, key, told):
    (fault,) = split_faults(demo_splits(**settings), 256.0, 0.25, ".".join, no_buffer=True)
    assert fault.where == f"splits.{key}"
    assert told in str(fault)


@pytest.mark.parametrize(
    ("settings", "no_buffer"),
    [
        ({}, False),
        ({"folds": 5, "fold": 5}, False),
        ({"layout": "blocks", "block_um": 513}, False),
        ({"buffer_um": 0}, True),
        ({"hold_out": "organ", "leave_out": ["lung"], "test": 0.1}, False),
        ({"hold_out": "patient", "folds": 3, "fold": 2, "test": 0.1}, False),
        ({"hold_out": "patient", "folds": 3, "fold": 2}, True),
        # The shares have no say in folds.
        ({"folds": 2, "val": 0.89}, False),
    ],
)
def test_settings_that_do(settings, no_buffer):
    splits = demo_splits(**settings)
    assert not split_faults(splits, 256.0, 0.25, ".".join, no_buffer)
    study = {"splits": splits, "windows": {"local": 224, "global": 1024}, "mpp": 0.25}
    assert SplitConfig.from_config({**study, "protocol": {"no_buffer": no_buffer}}).no_buffer == no_buffer
    assert SplitConfig.from_config({**study, "protocol": "released"} if no_buffer else study).no_buffer == no_buffer


def test_held_out_slides_cut_no_slide_anew():
    plain = within_slide(demo_splits())
    assert within_slide(demo_splits(hold_out="organ", leave_out=["lung"])) == plain
    assert within_slide(demo_splits(hold_out="patient", folds=5, fold=3)) == plain
    assert within_slide(demo_splits(folds=5, fold=3)) == {**plain, "folds": 5, "fold": 3}
    assert within_slide(plain) == plain


@pytest.fixture
def study(tmp_path):
    for name in ("config", "resources"):
        ignore = shutil.ignore_patterns("bundles", "truth")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignore, dirs_exist_ok=True)
    return tmp_path


def load(folder, **settings):
    (folder / "mine.yaml").write_text(yaml.safe_dump({"splits": settings}))
    files = [CONFIG, Path("mine.yaml")]
    return load_study(merge_files(files, folder), folder, files)


def test_a_study_follows_the_role(study):
    loaded = load(study, hold_out="organ", leave_out=["lung"])
    assert loaded.train_slides == ["ovary_1", "pancreas_1", "breast_1", "colon_1"]
    assert loaded.cohorts == ["lung_1", "ovary_h", "lung_h", "pancreas_h"]
    assert loaded.slides.loc["lung_1", "sheet_role"] == "train"
    folds = [load(study, hold_out="patient", folds=5, fold=fold).cohorts for fold in range(1, 6)]
    assert len({slide for cohorts in folds for slide in cohorts}) == 8
    assert all(len(cohorts) == 4 for cohorts in folds)


def test_a_fault_is_told_with_its_line(study):
    with pytest.raises(UserError) as caught:
        load(study, hold_out="organ", leave_out=["lnug"])
    assert f"{study / 'mine.yaml'}, line 3" in str(caught.value)
    assert "Did you mean 'lung'?" in str(caught.value)
    with pytest.raises(UserError, match=r"splits\.fold is no fold[\s\S]*mine\.yaml, line 2"):
        load(study, fold=4, folds=3)


def test_held_out_slides_make_up_for_a_sheet_without_cohorts(study):
    sheet = study / "config/slides.tsv"
    sheet.write_text("".join(line for line in sheet.read_text().splitlines(True) if "\tcohort\t" not in line))
    with pytest.raises(UserError, match="no slide with role 'cohort'"):
        load(study)
    assert load(study, hold_out="organ", leave_out=["lung"]).cohorts == ["lung_1"]
