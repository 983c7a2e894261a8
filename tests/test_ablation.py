"""Runs of the training compared with a reference: differences, their intervals, the audit's verdicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from fake_study import CLASSES, ORGANS, write_predictions
from nuclass.core.errors import UserError
from nuclass.core.names import FUSED, GATE, LOCAL, MODELS, probability_columns
from nuclass.core.protocol import SWITCHES
from nuclass.core.seed_noise import seed_noise
from nuclass.evaluation.ablation import (
    COHORT_CELLS,
    VAL_CELLS,
    Options,
    Run,
    compare_runs,
    independent_difference,
    judge_left_out,
    spread,
)
from nuclass.evaluation.audit import (
    AGAINST,
    AS_EXPECTED,
    CLOSED_SET,
    EXPECTED,
    FEWER,
    FIRST_CELLS,
    IDLE,
    MORE,
    NOT_SEEN,
    POLICY_ON_TEST,
    SAME,
    audit,
    closed,
    idle_by_cells,
    policy_optimism,
    verdict,
)
from nuclass.evaluation.predictions import read_predictions
from nuclass.training import gate_cells

OPTIONS = Options(mpp=0.25, block_um=60.0, draws=200, seed=1, min_support=5, bins=15)
COLUMNS = probability_columns(list(CLASSES))


def worse(source: Path, target: Path, share: float, *, split: str | None = None, drop: int = 0) -> str:
    """Write a copy of a prediction table in which a share of the cells is predicted uniformly."""
    table = pd.read_parquet(source)
    rng = np.random.default_rng(5)
    hit = rng.random(len(table)) < share
    table.loc[hit, COLUMNS] = 1 / len(COLUMNS)
    table.loc[hit, COLUMNS[-1]] += 1e-6
    if split is not None:
        table["split"] = split
    target.parent.mkdir(parents=True, exist_ok=True)
    table.iloc[drop:].to_parquet(target)
    return str(target)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A reference, a run that is worse on the cohorts alone, and one that has other val cells and is better there."""
    folder = tmp_path_factory.mktemp("runs")
    paths = write_predictions(folder / "base", n=500)

    def run(name: str, cohort_share: float, val_share: float, drop: int = 0) -> Run:
        cohorts: dict[str, list[str]] = {}
        val: dict[str, list[str]] = {}
        for model in MODELS:
            sources = [Path(paths[model][slide]) for slide in ORGANS]
            place = folder / name / model
            cohorts[model] = [worse(s, place / s.name, cohort_share) for s in sources]
            val[model] = [worse(s, place / f"val_{s.name}", val_share, split="val", drop=drop) for s in sources]
        return Run(name, "audit", name, cohorts, val)

    reference = run("reference", 0.3, 0.3)
    return {
        "reference": reference,
        "decay_everywhere": run("decay_everywhere", 0.6, 0.3),
        "no_buffer": run("no_buffer", 0.3, 0.0, drop=40),
        "released": run("released", 0.6, 0.0),
        "test_as_val": Run("test_as_val", "audit", "test_as_val", reference.cohorts, reference.val),
    }


@pytest.fixture(scope="module")
def table(runs) -> pd.DataFrame:
    return compare_runs(list(runs.values()), runs["reference"], OPTIONS)


def row(table: pd.DataFrame, run: str, cells: str, metric: str = "macro_f1", model: str = FUSED) -> pd.Series:
    keys = {"run": run, "cells": cells, "metric": metric, "model": model}
    return table[(table[list(keys)] == pd.Series(keys)).all(axis=1)].iloc[0]


def test_each_run_has_every_model_set_and_metric_once(runs, table):
    keys = table[["run", "model", "cells", "metric"]]
    assert len(keys.drop_duplicates()) == len(table) == len(runs) * 3 * 2 * 4


def test_numbers_are_scikit_learns(runs, table):
    for name, run in runs.items():
        found = read_predictions(run.cohorts[GATE])
        present = [i for i in range(len(CLASSES)) if (found.y == i).sum() >= OPTIONS.min_support]
        expected = f1_score(found.y, found.predicted, labels=present, average="macro", zero_division=0)
        assert row(table, name, COHORT_CELLS)["estimate"] == pytest.approx(expected)
        assert row(table, name, COHORT_CELLS)["n_cells"] == len(found.y)


def test_equal_files_differ_by_exactly_nothing(table):
    for cells in (COHORT_CELLS, VAL_CELLS):
        for metric in ("macro_f1", "accuracy", "log_loss"):
            found = row(table, "test_as_val", cells, metric)
            assert list(found[["difference", "difference_low", "difference_high"]]) == [0, 0, 0]
            assert found["low"] < found["estimate"] < found["high"]


def test_a_worse_run_is_seen_and_paired_intervals_are_narrower(table):
    found = row(table, "decay_everywhere", COHORT_CELLS)
    reference = row(table, "reference", COHORT_CELLS)
    assert found["difference"] == pytest.approx(found["estimate"] - reference["estimate"])
    assert found["difference_high"] < 0
    assert found["paired"]
    apart = independent_difference(
        *({"value": r["estimate"], "low": r["low"], "high": r["high"]} for r in (found, reference))
    )
    assert found["difference_high"] - found["difference_low"] < apart["high"] - apart["low"]


def test_other_val_cells_are_compared_as_independent(table):
    found = row(table, "no_buffer", VAL_CELLS)
    assert not found["paired"]
    assert found["difference"] > 0
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert row(table, "decay_everywhere", VAL_CELLS)["paired"], "the same cells with other predictions"


def test_other_val_cells_are_compared_over_the_classes_that_both_have(runs, tmp_path):
    """A class that only one of two runs has enough val cells of is no difference between them."""
    reference = runs["reference"]

    def without(name: str, label: str, keep: int) -> str:
        table = pd.read_parquet(name)
        table = table.drop(table.index[table["label"] == label][keep:])
        target = tmp_path / Path(name).parent.name / Path(name).name
        target.parent.mkdir(exist_ok=True)
        table.to_parquet(target)
        return str(target)

    whole = read_predictions(reference.val[GATE])
    f1 = f1_score(whole.y, whole.predicted, average=None, labels=range(len(CLASSES)))
    worst = int(np.argmin(np.where(np.bincount(whole.y, minlength=len(CLASSES)) >= 15, f1, 2)))
    fewer = {m: [without(v, CLASSES[worst], 1) for v in reference.val[m]] for m in MODELS}
    found = compare_runs([Run("fewer", "x", "x", reference.cohorts, fewer)], reference, OPTIONS)
    mine, own = row(found, "fewer", VAL_CELLS), read_predictions(fewer[GATE])
    both = [i for i in range(len(CLASSES)) if (own.y == i).sum() >= OPTIONS.min_support]
    assert worst not in both
    by_hand = [f1_score(p.y, p.predicted, labels=both, average="macro") for p in (own, whole)]
    assert mine["difference"] == pytest.approx(by_hand[0] - by_hand[1])
    assert mine["estimate"] == pytest.approx(by_hand[0])
    assert not mine["paired"]


def test_a_run_that_test_cells_chose_is_judged_on_them(runs, tmp_path):
    """Its own val cells chose nothing; the reference is compared on the same test cells."""
    reference = runs["reference"]

    def half_test(names: list[str], better: bool) -> list[str]:
        out = []
        for number, name in enumerate(names):
            table = pd.read_parquet(name)
            half = np.arange(len(table)) % 2 == 0
            table["split"] = np.where(half & (number > 0), "test", "val")
            if better:
                table.loc[half, COLUMNS] = np.eye(len(CLASSES))[[CLASSES.index(c) for c in table["label"][half]]]
            target = tmp_path / str(better) / Path(name).parent.name / Path(name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            table.sample(frac=1, random_state=number).to_parquet(target) if better else table.to_parquet(target)
            out.append(str(target))
        return out

    base = Run("reference", "", "", reference.cohorts, {m: half_test(reference.val[m], False) for m in MODELS})
    chosen = {m: half_test(reference.val[m], True) for m in MODELS}
    run = Run("test_as_val", "audit", "test_as_val", reference.cohorts, chosen, test_as_val=True)
    found = compare_runs([base, run], base, OPTIONS)
    mine = row(found, "test_as_val", VAL_CELLS, "accuracy")
    whole = read_predictions(run.val[GATE])
    slides, split = whole.table["slide"].to_numpy(), whole.table["split"].to_numpy()
    first = pd.read_parquet(run.val[GATE][0])["slide"].iloc[0]
    cells = (split == "test") | (slides == first)
    assert mine["n_cells"] == cells.sum()
    assert mine["estimate"] == pytest.approx((whole.predicted == whole.y)[cells].mean())
    assert mine["paired"], "the same cells, in whatever order"
    assert mine["difference_low"] > 0
    assert row(found, "reference", VAL_CELLS)["n_cells"] == (split == "val").sum()


def test_pairs_are_resampled_where_the_reference_says_the_cells_lie(runs, tmp_path):
    """Under inverted_mpp positions are at another scale; squares of tissue must not grow with it."""
    moved = {}
    for model in MODELS:
        moved[model] = []
        for name in runs["decay_everywhere"].cohorts[model]:
            table = pd.read_parquet(name)
            table[["x_px", "y_px"]] *= 0.5
            target = tmp_path / model / Path(name).name
            target.parent.mkdir(exist_ok=True)
            table.to_parquet(target)
            moved[model].append(str(target))
    run = Run("inverted_mpp", "audit", "inverted_mpp", moved, runs["reference"].val)
    found = compare_runs([run, runs["decay_everywhere"]], runs["reference"], OPTIONS)
    names = ["estimate", "low", "high", "difference", "difference_low", "difference_high"]
    one, other = (row(found, name, COHORT_CELLS)[names].to_dict() for name in ("inverted_mpp", "decay_everywhere"))
    assert one == other


def test_a_run_that_knows_one_class_more_is_compared_without_its_cells(runs, tmp_path):
    """As ``released`` may, where a class has test cells but no train cell."""
    reference, name = runs["reference"], CLASSES[2]

    def lacking(names: list[str]) -> list[str]:
        out = []
        for source in names:
            table = pd.read_parquet(source).drop(columns=probability_columns([name]))
            rest = [column for column in COLUMNS if column in table]
            table[rest] = table[rest].div(table[rest].sum(axis=1), axis=0)
            target = tmp_path / Path(source).parent.name / Path(source).name
            target.parent.mkdir(exist_ok=True)
            table.to_parquet(target)
            out.append(str(target))
        return out

    base = Run(
        "reference", "", "", *({m: lacking(kind[m]) for m in MODELS} for kind in (reference.cohorts, reference.val))
    )
    more = Run("released", "audit", "released", reference.cohorts, reference.val)
    found = compare_runs([base, more], base, OPTIONS)
    mine, own = (row(found, run, COHORT_CELLS, "accuracy") for run in ("released", "reference"))
    cells = read_predictions(reference.cohorts[GATE])
    kept = cells.y != 2
    assert mine["n_cells"] == own["n_cells"] == kept.sum() < len(cells.y)
    assert mine["estimate"] == pytest.approx((cells.predicted == cells.y)[kept].mean())
    assert mine["difference"] == pytest.approx(mine["estimate"] - own["estimate"])
    assert mine["difference"] <= 0, "it may err into one class more"
    told = audited({"reference": base, "released": more}).loc["released"]
    assert told["difference"] == pytest.approx(told["estimate"] - row(found, "reference", COHORT_CELLS)["estimate"])


def test_runs_of_other_cells_are_refused(runs):
    fewer = {model: paths[:1] for model, paths in runs["decay_everywhere"].cohorts.items()}
    with pytest.raises(UserError, match="different cells"):
        compare_runs([Run("x", "", "", fewer, runs["reference"].val)], runs["reference"], OPTIONS)


def test_independent_difference_by_hand():
    found = independent_difference({"value": 0.7, "low": 0.67, "high": 0.73}, {"value": 0.6, "low": 0.56, "high": 0.64})
    assert found == pytest.approx({"value": 0.1, "low": 0.05, "high": 0.15})


def test_spread_is_that_of_a_sample():
    rows = [{"model": FUSED, "cells": "val", "metric": "ece", "estimate": value} for value in (1.0, 2.0, 4.0)]
    found = spread(pd.DataFrame(rows)).iloc[0]
    assert (found["runs"], found["mean"], found["min"], found["max"]) == (3, pytest.approx(7 / 3), 1, 4)
    assert found["sd"] == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_runs_without_an_organ_are_judged_on_the_same_cells(runs):
    modes = {"film": "reference", "concat": "decay_everywhere"}
    local = [
        Run(f"without_lung_{mode}", "leave_out", f"lung {mode}", {LOCAL: runs[name].cohorts[LOCAL]}, {})
        for mode, name in modes.items()
    ]
    found = judge_left_out(local, "lung", OPTIONS)
    assert list(found["models"]) == ["lung film", "lung concat"]
    gap = found["differences"]["lung film-lung concat"]["macro_f1"]
    assert gap["low"] > 0
    assert found["organ"] == "lung"


@pytest.mark.parametrize(
    ("expected", "interval", "noise", "told"),
    [
        (FEWER, (-0.1, -0.15, -0.05), 0.02, AS_EXPECTED),
        (FEWER, (0.1, 0.05, 0.15), 0.02, AGAINST),
        (FEWER, (-0.1, -0.25, 0.05), 0.02, NOT_SEEN),
        (FEWER, (-0.1, -0.15, -0.05), 0.12, NOT_SEEN),
        (MORE, (0.1, 0.05, 0.15), 0.0, AS_EXPECTED),
        (SAME, (0.01, -0.02, 0.04), 0.0, AS_EXPECTED),
        (SAME, (0.1, 0.05, 0.15), 0.0, AGAINST),
        (SAME, (0.1, 0.05, 0.15), 0.2, AS_EXPECTED),
        (MORE, (0.1, 0.05, 0.15), float("nan"), NOT_SEEN),
    ],
)
def test_verdicts(expected, interval, noise, told):
    assert verdict(expected, dict(zip(("value", "low", "high"), interval, strict=True)), noise) == told


def test_the_closed_set_is_that_of_each_slide(runs):
    found = read_predictions(runs["reference"].cohorts[GATE])
    forced = closed(found)
    for slide in ORGANS:
        mine = (found.table["slide"] == slide).to_numpy()
        assert set(forced.predicted[mine]) <= set(found.y[mine])
        assert not forced.probs[mine][:, np.setdiff1d(np.arange(len(CLASSES)), found.y[mine])].any()


def test_closed_set_forces_predictions_into_the_classes_that_occur(runs):
    found = read_predictions(runs["reference"].cohorts[GATE])
    one = found.table["slide"] == "lung_h"
    some = found.take(np.flatnonzero(np.isin(found.y, [3, 6]) & one.to_numpy()))
    forced = closed(some)
    assert set(forced.predicted) <= {3, 6}
    assert np.allclose(forced.probs.sum(axis=1), 1)
    expected = np.where(some.probs[:, 3] >= some.probs[:, 6], 3, 6)
    assert np.array_equal(forced.predicted, expected)
    assert (forced.predicted == forced.y).mean() > (some.predicted == some.y).mean()


def seeds_of(sd: float) -> pd.DataFrame:
    keys = {"model": FUSED, "metric": "macro_f1", "runs": 3, "sd": sd}
    return pd.DataFrame([keys | {"cells": cells} for cells in (COHORT_CELLS, VAL_CELLS)])


POLICY = {
    "n_cells": 9,
    "tuned_on_test": {"value": 0.8, "low": 0.7, "high": 0.9},
    "difference": {"value": 0.02, "low": 0.01, "high": 0.03},
}


def audited(runs: dict[str, Run], sd: float = 0.001, selecting: int = 100) -> pd.DataFrame:
    others = [run for name, run in runs.items() if name != "reference"]
    idle = {"test_as_val": "no test cells"}
    options = {"idle": idle, "policy": POLICY, "selecting": selecting}
    return audit(others, runs["reference"], seeds_of(sd), OPTIONS, **options).set_index("switch")


def test_audit_tells_what_is_seen(runs):
    found = audited(runs)
    assert found.index[0] == "reference"
    assert list(found.index[1:]) == [name for name in EXPECTED if name in found.index]
    verdicts = found["verdict"].to_dict()
    assert verdicts["decay_everywhere"] == AGAINST, "theory expects no change, and there is one"
    assert verdicts["no_buffer"] == AS_EXPECTED
    assert verdicts["test_as_val"] == IDLE
    assert verdicts[POLICY_ON_TEST] == AS_EXPECTED
    assert verdicts["released"] == AS_EXPECTED, "worse on the cohorts"
    assert found.loc["released", ["val_expected", "val_verdict"]].tolist() == [MORE, AS_EXPECTED], "and better on val"
    assert found.drop(index="released")["val_verdict"].isna().all()
    assert found.loc["no_buffer", "optimism"] == pytest.approx(
        found.loc["no_buffer", "val"] - found.loc["no_buffer", "estimate"]
    )
    gap = compare_runs([runs["no_buffer"]], runs["reference"], OPTIONS)
    assert found.loc["no_buffer", "val_difference_low"] == row(gap, "no_buffer", VAL_CELLS)["difference_low"] > 0
    assert found.loc["no_buffer", "optimism"] > found.loc["reference", "optimism"]
    assert found.loc[POLICY_ON_TEST, "metric"] == "accuracy"
    released = found.loc["released"]
    assert released["estimate"] > found.loc["decay_everywhere", "estimate"], (
        "the same predictions, read as a closed set"
    )
    assert released["difference"] == pytest.approx(released["estimate"] - found.loc["reference", "estimate"])
    assert released["optimism"] == pytest.approx(released["val"] - released["estimate"])


ENDS = ("", "_low", "_high")


def test_a_flaw_flatters_by_its_optimism_minus_the_references(runs):
    found = audited(runs)
    assert found.loc["reference", [f"flattery{end}" for end in ENDS]].tolist() == [0, 0, 0]
    for name in ("decay_everywhere", "no_buffer", "released"):
        row_ = found.loc[name]
        assert row_["flattery"] == pytest.approx(row_["val_difference"] - row_["difference"])
        halves = [(row_[f"{kind}_high"] - row_[f"{kind}_low"]) / 2 for kind in ("val_difference", "difference")]
        assert (row_["flattery_high"] - row_["flattery_low"]) / 2 == pytest.approx(np.hypot(*halves))
    paired = found.loc["decay_everywhere"]
    assert paired["flattery"] == pytest.approx(paired["optimism"] - found.loc["reference", "optimism"])
    assert paired["flattery_low"] > 0, "worse on the cohorts, the same on val"
    for name in (CLOSED_SET, POLICY_ON_TEST):
        same = found.loc[name]
        assert [same[f"flattery{end}"] for end in ENDS] == [same[f"difference{end}"] for end in ENDS]


@pytest.mark.parametrize(("selecting", "verdict"), [(FIRST_CELLS, IDLE), (FIRST_CELLS + 1, AS_EXPECTED)])
def test_a_gate_chosen_by_the_first_cells_is_idle_where_these_are_all(runs, selecting, verdict):
    """By the cells that choose the gate, a part of val, however many val has."""
    first = Run("gate_first_cells", "audit", "gate_first_cells", runs["reference"].cohorts, runs["reference"].val)
    some = {"reference": runs["reference"], "gate_first_cells": first, "released": runs["released"]}
    found = audited(some, selecting=selecting).loc["gate_first_cells"]
    told = "the gate is chosen by 14,400 val cells, no more than 14,400"
    assert (found["verdict"], found["idle"]) == (verdict, told if verdict == IDLE else "")


def test_the_first_cells_are_those_of_the_gates_training():
    assert gate_cells.FIRST_CELLS == FIRST_CELLS
    assert idle_by_cells(FIRST_CELLS + 1) == {}


def test_runs_are_ranked_on_the_cohorts(runs, table):
    """Of three runs neither of two need be the reference."""
    some = [runs["reference"], runs["decay_everywhere"], runs["released"]]
    found = compare_runs(some, runs["no_buffer"], OPTIONS, ranked=True)
    on_cohorts = found[found["cells"] == COHORT_CELLS]
    for _, group in on_cohorts.groupby(["model", "metric"]):
        values = group.set_index("value")
        best = values["estimate"].agg("idxmin" if group["metric"].iloc[0] in ("log_loss", "ece") else "idxmax")
        assert set(group["best"]) == {best}
        assert values.loc[best, ["behind", "behind_low", "behind_high"]].tolist() == [0, 0, 0]
        assert values["behind"].to_numpy() == pytest.approx(
            (values["estimate"] - values.loc[best, "estimate"]).to_numpy()
        )
    assert row(found, "decay_everywhere", COHORT_CELLS)["behind_high"] < 0
    assert found[found["cells"] == VAL_CELLS]["best"].isna().all()
    assert table["best"].isna().all(), "only where it is asked for"


def test_seeds_that_differ_much_hide_an_effect(runs):
    assert audited(runs, sd=0.5)["verdict"]["no_buffer"] == NOT_SEEN


def test_released_that_changes_nothing_is_not_seen(runs):
    """Val cells that are easier than the cohorts are so for the corrected method too, and no flaw."""
    easy = Run("reference", "", "", runs["decay_everywhere"].cohorts, runs["no_buffer"].val)
    same = Run("released", "audit", "released", easy.cohorts, easy.val)
    found = audited({"reference": easy, "released": same}).loc["released"]
    assert found["val_low"] > found["high"]
    assert found["val_verdict"] == NOT_SEEN
    assert found["verdict"] in (NOT_SEEN, AGAINST), "the closed set alone"
    assert audited(runs, sd=0.5)["verdict"]["released"] == NOT_SEEN


def test_the_closed_set_row_is_of_the_reference(runs):
    found = audited(runs)
    assert found.loc[CLOSED_SET, "difference"] == pytest.approx(
        found.loc[CLOSED_SET, "estimate"] - found.loc["reference", "estimate"]
    )


def test_every_switch_has_an_expectation_with_a_reason():
    assert set(EXPECTED) == {*SWITCHES, "released"}
    for where, direction, why in EXPECTED.values():
        assert where in (COHORT_CELLS, VAL_CELLS)
        assert direction in (FEWER, MORE, SAME)
        assert why


def test_the_policys_optimism_comes_from_the_fusion_file():
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    gap = {"value": 0.1, "low": 0.0, "high": 0.2}
    result = {
        "n_cells": 7,
        "models": {"safe_on_reported": {"accuracy": interval}},
        "differences": {"safe_on_reported-safe_on_val": {"accuracy": gap}},
    }
    assert policy_optimism({"cohorts": {"all": result}}) == {"n_cells": 7, "tuned_on_test": interval, "difference": gap}


def test_few_seeds_tell_little_of_what_seeds_do():
    """Two more runs differ by more than the limit in 5 of 100 studies, with three seeds as with many."""
    rng = np.random.default_rng(0)
    for runs in (3, 10):
        draws = rng.normal(size=(20_000, runs + 2))
        limit = np.array([seed_noise(sd, runs) for sd in draws[:, 2:].std(axis=1, ddof=1)])
        assert (np.abs(draws[:, 0] - draws[:, 1]) > limit).mean() == pytest.approx(0.05, abs=0.006)
    assert np.isnan(seed_noise(0.1, 1))
