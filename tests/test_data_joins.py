"""Tables of cells against plain pandas: the join, and what compact columns must not change further on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.core.names import SPLITS, TRAIN, VAL
from nuclass.data import Study, Vocabulary, load_cells
from nuclass.data.training_cells import by_place, known_classes, load_training_cells
from nuclass.training.composition import neighbourhoods
from nuclass.training.gate import select_blocks
from nuclass.training.inputs import cells_by_slide
from nuclass.training.predict import Prediction, check_unseen, prediction_table

CLASSES = ("T_Cell", "B_Cell", "Ductal", "aCell")
TEXT = ("slide", "organ", "cell_id", "class", "split")


def write_study(root: Path, seed: int, sizes: list[int], empty: float) -> list[dict[str, str]]:
    """Write random tables; ids repeat between slides, each table has its own order, fields are empty here and there."""
    rng = np.random.default_rng(seed)
    slides = []
    for number, n in enumerate(sizes):
        slide = f"s{len(sizes) - number}"
        slides.append({"slide": slide, "organ": str(rng.choice(["lung", "colon"]))})
        ids = np.array([f"{i:03d}" for i in range(n)])
        status = rng.choice(["labelled", "abstained", "dropped"], n, p=[0.7, 0.2, 0.1])
        # what is not labelled may still carry a class, which does not count
        names = np.where(rng.random(n) < empty, None, rng.choice(CLASSES[: rng.integers(1, 5)], n))
        place = rng.uniform(0, 900, (n, 2))
        tables = {
            f"slides/{slide}/cells": {"cell_id": ids, "x_px": place[:, 0], "y_px": place[:, 1]},
            f"labels/{slide}/labels": {"cell_id": ids, "class": names, "status": status},
            f"splits/{slide}": {"cell_id": ids, "split": rng.choice(SPLITS[: rng.integers(1, len(SPLITS) + 1)], n)},
        }
        for name, columns in tables.items():
            table = pd.DataFrame(columns).sample(frac=1, random_state=int(rng.integers(1000)))
            write_parquet(root / f"{name}.parquet", table.astype({"cell_id": str}))
    return slides


def plain_join(root: Path, slides: list[dict[str, str]], splits, only_labelled: bool) -> pd.DataFrame:
    """Join in the way one would write it down first, in Python objects."""
    parts = []
    for row in slides:
        cells = pd.read_parquet(root / "slides" / row["slide"] / "cells.parquet")
        cells["row"] = np.arange(len(cells))
        labels = pd.read_parquet(root / "labels" / row["slide"] / "labels.parquet")
        split = pd.read_parquet(root / "splits" / f"{row['slide']}.parquet")
        table = cells.merge(labels, on="cell_id", validate="1:1").merge(split, on="cell_id", validate="1:1")
        table["class"] = table["class"].fillna("").where(table["status"] == "labelled", "")
        parts.append(table.assign(slide=row["slide"], organ=row["organ"]))
    table = pd.concat(parts, ignore_index=True)
    kept = table["split"].isin(SPLITS if splits is None else splits) & ((table["class"] != "") | (not only_labelled))
    return table.loc[kept, ["slide", "organ", "cell_id", "row", "x_px", "y_px", "class", "split"]].reset_index(
        drop=True
    )


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype(dict.fromkeys(TEXT, object))


studies = {
    "seed": st.integers(0, 10_000),
    "sizes": st.lists(st.integers(1, 40), min_size=1, max_size=4),
    "empty": st.sampled_from([0.0, 0.3]),
}
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(
    **studies,
    splits=st.one_of(st.none(), st.lists(st.sampled_from(SPLITS), unique=True)),
    only_labelled=st.booleans(),
)
def test_the_join_is_that_of_plain_tables(tmp_path_factory, seed, sizes, empty, splits, only_labelled):
    root = tmp_path_factory.mktemp("study")
    slides = write_study(root, seed, sizes, empty)
    expected = plain_join(root, slides, splits, only_labelled)
    if expected.empty:
        with pytest.raises(UserError, match="cells are left"):
            load_cells(slides, root, splits, only_labelled)
        return
    found = load_cells(slides, root, splits, only_labelled)
    pd.testing.assert_frame_equal(plain(found), expected.astype(dict.fromkeys(TEXT, object)), check_dtype=False)
    for column in ("slide", "organ", "class", "split"):
        assert list(found[column].cat.categories) == sorted(expected[column].unique())


@quick
@given(**studies)
def test_compact_columns_change_nothing_further_on(tmp_path_factory, seed, sizes, empty):
    """Whatever training and prediction do with a table, they do alike with Python objects in its columns."""
    root = tmp_path_factory.mktemp("study")
    slides = write_study(root, seed, [*sizes, 30], empty)
    frame = by_place(load_cells(slides, root, only_labelled=False))
    other = by_place(plain(load_cells(slides, root, only_labelled=False)))
    pd.testing.assert_frame_equal(plain(frame), other)
    some = Vocabulary(CLASSES[:2], ("lung", "unknown"))
    vocabulary = Vocabulary.from_frame(frame, unknown_organ=True)
    assert vocabulary == Vocabulary.from_frame(other, unknown_organ=True)
    # parts of a table keep names that no longer occur
    late = frame["row"].to_numpy() % 3 == 0
    for a, b in (
        (frame, other),
        (frame[late], other[late]),
        (frame[frame["split"] == VAL], other[other["split"] == VAL]),
    ):
        assert some.only_known(a["class"]).tolist() == some.only_known(b["class"]).tolist()
        assert np.array_equal(vocabulary.encode_classes(a["class"]), vocabulary.encode_classes(b["class"]))
        assert np.array_equal(some.encode_organs(a["organ"]), some.encode_organs(b["organ"]))
        pd.testing.assert_frame_equal(plain(known_classes(a, some, "it")), known_classes(b, some, "it"))
        assert cells_by_slide(a) == cells_by_slide(b)
        if len(a) < 2:
            continue
        counts = [neighbourhoods(f, np.zeros(len(f), int), 1, window_px=200, side=2, radii_px=[50.0]) for f in (a, b)]
        assert all(torch.equal(one, two) for one, two in zip(*counts, strict=True))
        p = torch.rand(len(a), 2)
        tables = [prediction_table(f, Prediction(p, p, p), ["x", "y"]) for f in (a, b)]
        pd.testing.assert_frame_equal(*tables)
        try:
            expected = select_blocks(b, 0.4, 300.0, 1)
        except UserError:
            continue
        assert np.array_equal(select_blocks(a, 0.4, 300.0, 1), expected)


@quick
@given(**studies)
def test_training_cells_are_those_of_plain_tables(tmp_path_factory, seed, sizes, empty):
    root = tmp_path_factory.mktemp("study")
    slides = write_study(root, seed, sizes, empty)
    expected = plain_join(root, slides, (TRAIN, VAL), True)
    train, val = (expected[expected["split"] == split] for split in (TRAIN, VAL))
    known = sorted(set(train["class"]))
    val = val[val["class"].isin(known)]
    if len(known) < 2 or val.empty:
        with pytest.raises(UserError, match=r"cell|two classes"):
            load_training_cells(Study(slides, root))
        return
    *found, vocabulary = load_training_cells(Study(slides, root))
    assert vocabulary.classes == tuple(known)
    assert vocabulary.organs == (*sorted(set(train["organ"])), "unknown")
    for frame, part in zip(found, (train, val), strict=True):
        ordered = plain(frame).sort_values(["slide", "row"], ascending=[False, True]).reset_index(drop=True)
        wanted = part.sort_values(["slide", "row"], ascending=[False, True]).reset_index(drop=True)
        pd.testing.assert_frame_equal(ordered, wanted, check_dtype=False)
        assert list(dict.fromkeys(frame["slide"])) == list(dict.fromkeys(part["slide"]))


def test_a_cell_of_training_is_found_by_slide_and_id(tmp_path):
    slides = write_study(tmp_path, 3, [30, 30], 0.0)
    frame = load_cells(slides, tmp_path)
    first, second = (row["slide"] for row in slides)
    ids = frame[frame["slide"] == first]["cell_id"].tolist()
    only = frame[frame["slide"] == second]
    check_unseen(only, {"cells": {first: {TRAIN: ids}}})
    with pytest.raises(UserError, match=f"used in training[\\s\\S]*slide {first}\n[\\s\\S]*{len(ids)} cells"):
        check_unseen(frame, {"cells": {first: {TRAIN: ids}}})
