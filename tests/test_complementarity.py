from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from fake_study import CLASSES, write_predictions
from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.core.readings import ALL_CLASSES
from nuclass.evaluation.bootstrap import spatial_blocks
from nuclass.evaluation.complementarity import (
    complementarity,
    complementarity_of_cohorts,
    count,
    holm,
    mcnemar,
)
from nuclass.evaluation.predictions import read_models, read_predictions

OPTIONS = {"mpp": 0.25, "block_um": 150, "draws": 100, "seed": 1}


def counted(y: list[int], a: list[int], b: list[int], classes: str = "xyz") -> pd.DataFrame:
    n = len(y)
    blocks = spatial_blocks(["s"] * n, np.arange(n) * 10.0, np.zeros(n), 20)
    table = complementarity(np.array(y), np.array(a), np.array(b), list(classes), blocks, draws=50, seed=0)
    return table.set_index("class")


def test_counts_by_hand() -> None:
    #      both, A only, A only, B only, neither | neither, B only
    y = [0, 0, 0, 0, 0, 1, 1]
    a = [0, 0, 0, 1, 1, 0, 2]
    b = [0, 1, 2, 0, 2, 0, 1]
    table = counted(y, a, b)
    assert list(table.index) == ["x", "y", ALL_CLASSES]
    x, total = table.loc["x"], table.loc[ALL_CLASSES]
    assert [x[k] for k in ("N", "A_only", "B_only", "Both", "Neither")] == [5, 2, 1, 1, 1]
    assert [x[f"{k}_pct"] for k in ("A_only", "B_only", "Both", "Neither")] == pytest.approx([40, 20, 20, 20])
    assert x["A_share"] == pytest.approx(2 / 3)
    assert x["dominant"] == "A"
    assert (x["acc_A"], x["acc_B"], x["oracle"]) == pytest.approx((0.6, 0.4, 0.8))
    assert x["gain"] == pytest.approx(0.2)
    assert x["difference"] == pytest.approx(-0.2)
    assert [total[k] for k in ("N", "A_only", "B_only", "Both", "Neither")] == [7, 2, 2, 1, 2]
    assert total["dominant"] == "~50/50"
    assert total["gain"] == pytest.approx(5 / 7 - 3 / 7)
    assert table.loc["y", "dominant"] == "B"


def test_mcnemar_is_the_exact_binomial_test() -> None:
    # 1 of 6: two tails of (1 + 6) / 64.
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(4, 4) == 1
    assert mcnemar(0, 0) == 1
    a, b = 400, 480
    approximate = chi2.sf((abs(a - b) - 1) ** 2 / (a + b), 1)
    assert mcnemar(a, b) == pytest.approx(approximate, rel=0.02)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert len(holm([])) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_p_and_bonferroni(p: list[float]) -> None:
    corrected, raw = holm(p), np.array(p)
    assert (corrected >= raw - 1e-15).all()
    assert (corrected <= np.minimum(raw * len(p), 1) + 1e-15).all()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 80))
def test_counts_add_up(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    y, a, b = rng.integers(3, size=(3, n)).tolist()
    table = counted(y, a, b)
    kinds = ["A_only", "B_only", "Both", "Neither"]
    assert (table[kinds].sum(axis=1) == table["N"]).all()
    classes = table.drop(ALL_CLASSES)
    assert classes[["N", *kinds]].sum().tolist() == table.loc[ALL_CLASSES, ["N", *kinds]].tolist()
    assert (table["gain"] >= 0).all()
    low, value, high = (table[c].to_numpy(float) for c in ("low", "difference", "high"))
    assert (low <= high).all()
    assert ((value >= -1) & (value <= 1)).all()


def test_equal_cell_ids_on_two_slides_are_two_cells(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path, n=80)
    for model in ("local", "global"):
        for path in paths[model].values():
            table = pd.read_parquet(path)
            table["cell_id"] = [f"same{i}" for i in range(len(table))]
            write_parquet(path, table)
    table = complementarity_of_cohorts(paths, tmp_path / "c.csv", **OPTIONS)
    totals = table[table["class"] == ALL_CLASSES].set_index("cohort")["N"]
    assert totals.to_dict() == {"ovary_h": 80, "lung_h": 80, "pancreas_h": 80, "all": 240}
    for kind in ("A_only", "B_only", "Both", "Neither"):
        of = table[table["class"] == ALL_CLASSES].set_index("cohort")[kind]
        assert of["all"] == of.drop("all").sum()


def test_cells_are_matched_not_taken_in_order(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path, n=120)
    before = complementarity_of_cohorts(paths, tmp_path / "a.csv", **OPTIONS)
    for path in paths["global"].values():
        write_parquet(path, pd.read_parquet(path).sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(before, complementarity_of_cohorts(paths, tmp_path / "b.csv", **OPTIONS))
    local = read_predictions(list(paths["local"].values()))
    shuffled = read_predictions(list(paths["global"].values()))
    with pytest.raises(UserError, match="not the same cells in the same order"):
        count({"local": local, "global": shuffled}, **OPTIONS)


def test_interval_of_the_difference_is_that_of_the_paired_bootstrap(tmp_path: Path) -> None:
    from nuclass.evaluation.bootstrap import paired_bootstrap

    paths = write_predictions(tmp_path, n=200)
    models = read_models({m: list(paths[m].values()) for m in ("local", "global")})
    row = count(models, **OPTIONS).set_index("class").loc[ALL_CLASSES]
    table = models["local"].table
    blocks = spatial_blocks(table["slide"], table["x_px"] * 0.25, table["y_px"] * 0.25, 150)
    found = paired_bootstrap(
        models["local"].y,
        {name: one.probs for name, one in models.items()},
        blocks,
        CLASSES,
        pairs=[("global", "local")],
        draws=100,
        seed=1,
    )["differences"]["global-local"]["accuracy"]
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([found[k] for k in ("value", "low", "high")])


def test_refuses_other_lengths() -> None:
    with pytest.raises(UserError, match="not of the same cells"):
        counted([0, 1], [0, 1], [0])
