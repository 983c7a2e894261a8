"""Names and order of classes, cohorts and ways to fuse: one source for tables and figures."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

from nuclass.core.class_names import (
    ALL,
    ORGAN_USES,
    WAYS,
    class_groups,
    class_order,
    class_title,
    cohort_title,
)
from nuclass.core.names import TITLES
from nuclass.core.readings import ALL_CLASSES
from nuclass.core.variants import ORGAN_MODES

SHEET = Path(__file__).parent.parent / "resources/classes.tsv"


def test_titles_are_words() -> None:
    names = [*class_groups(SHEET), ALL_CLASSES]
    titles = [class_title(name) for name in names]
    assert not [title for title in titles if "_" in title or "TumorA" in title]
    assert class_title("Endothelial_TumorAssociated") == "Endothelial Tumor Associated"
    assert class_title("B_Cell") == "B Cell"
    assert class_title(ALL_CLASSES) == "All classes"
    assert len(set(titles)) == len(titles)
    assert cohort_title(ALL) == "All cohorts"
    assert cohort_title("ovary_h") == "ovary h"


def test_order_is_that_of_the_sheets_groups_and_not_of_what_is_given() -> None:
    groups = class_groups(SHEET)
    names = class_order(groups, groups)
    assert sorted(names) == sorted(groups)
    runs = [groups[name] for name in names]
    assert len([a for a, b in pairwise(runs) if a != b]) == len(set(runs)) - 1, "groups stay together"
    shuffled = [*names, "zzz", "aaa"]
    random.Random(1).shuffle(shuffled)
    assert class_order([*shuffled, names[0]], groups) == [*names, "aaa", "zzz"]
    assert class_order([], groups) == []


def test_the_studys_own_sheet_is_read_before_the_one_that_comes_along(tmp_path: Path, monkeypatch) -> None:
    own = tmp_path / "resources/classes.tsv"
    own.parent.mkdir()
    own.write_text("class\tshort\tgroup\tcolour\nT_Cell\tT\tb\t#000000\nAcinar\tA\ta\t#000000\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert class_order(["Acinar", "T_Cell"]) == ["T_Cell", "Acinar"]
    assert class_order(["Acinar"], {}) == ["Acinar"]


def test_every_way_and_use_of_the_organ_has_a_title() -> None:
    assert set(WAYS) <= set(TITLES)
    assert tuple(ORGAN_USES) == ORGAN_MODES
