"""What each flaw of the original's protocol does to the numbers: the audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.names import FUSED, GATE
from nuclass.core.protocol import RELEASED
from nuclass.core.seed_noise import seed_noise
from nuclass.evaluation.ablation import (
    COHORT_CELLS,
    VAL_CELLS,
    Options,
    Run,
    compare_runs,
    independent_difference,
    read_pair,
)
from nuclass.evaluation.compare import ALL
from nuclass.evaluation.metrics import closed_set
from nuclass.evaluation.predictions import Predictions, read_predictions

CLOSED_SET, POLICY_ON_TEST = "closed_set", "policy_on_test"
FEWER, MORE, SAME = "lower", "higher", "no change"
EXPECTED: dict[str, tuple[str, str, str]] = {
    "inverted_mpp": (COHORT_CELLS, FEWER, "every slide at a scale of its own: a size means nothing"),
    "no_buffer": (VAL_CELLS, MORE, "windows of val and train cells share pixels; but its val is other tissue, too"),
    "test_as_val": (VAL_CELLS, MORE, "the cells that chose the models are reported"),
    "black_corners": (COHORT_CELLS, FEWER, "the stain of the cohorts was never seen"),
    "no_global_augmentation": (COHORT_CELLS, FEWER, "the stain of the cohorts was never seen"),
    "decay_everywhere": (COHORT_CELLS, SAME, "decay of norms and biases is small beside the rest"),
    "unguarded_class_weights": (COHORT_CELLS, FEWER, "one class without cells flattens the weights of the others"),
    "undetached_weight": (COHORT_CELLS, SAME, "the gradient also lowers the weights, which the class loss holds up"),
    "moving_teacher": (COHORT_CELLS, SAME, "the teacher learns what it judges; its weights shrink"),
    "label_in_gate": (COHORT_CELLS, FEWER, "the inner gate learns from what it lacks later"),
    "batch_context_dropout": (COHORT_CELLS, SAME, "the same share of cells without context, in lumps"),
    "alpha_reset": (COHORT_CELLS, FEWER, "the context counts a quarter of what was learnt"),
    "truncated_context": (COHORT_CELLS, SAME, "the same in training and later; half a grey value"),
    "smaller_gate_context": (COHORT_CELLS, FEWER, "the global model sees other features than it learnt from"),
    "gate_on_train": (COHORT_CELLS, FEWER, "on cells that both models know, who is right is not what it is later"),
    "gate_first_cells": (
        COHORT_CELLS,
        SAME,
        "chosen by its first 14,400 val cells, which lie on the first slides",
    ),
    "batch_pos_weight": (COHORT_CELLS, SAME, "a noisier weight of the positives"),
    "frozen_heads": (COHORT_CELLS, SAME, "noise in training, no other change"),
    "first_organ": (COHORT_CELLS, FEWER, "the organ told is a wrong one for most cells"),
    CLOSED_SET: (COHORT_CELLS, MORE, "errors into absent classes cannot happen"),
    POLICY_ON_TEST: (COHORT_CELLS, MORE, "tuned on the cells it is reported on"),
    RELEASED: (COHORT_CELLS, FEWER, "most flaws harm the model; a closed set gives back little"),
}
"""Switch -> the cells where theory expects an effect, its direction, and why."""
EXPECTED_ON_VAL = {RELEASED: MORE}
"""Switch that is judged on val as well -> the direction there."""
FIRST_CELLS = 14_400
"""Cells of the selecting part of val that choose the gate under ``gate_first_cells``, at most."""
COLUMNS = (
    "switch metric cells estimate low high difference difference_low difference_high val val_low val_high "
    "val_difference val_difference_low val_difference_high optimism flattery flattery_low flattery_high "
    "expected_on expected why seed_noise verdict val_expected val_verdict idle"
).split()
AS_EXPECTED, AGAINST, NOT_SEEN, IDLE = "as expected", "against expectation", "not seen", "changes nothing"


def closed(found: Predictions) -> Predictions:
    """Return predictions forced into the classes that occur on the cell's own slide, as the original does."""
    slide = found.table["slide"].to_numpy()
    probs = np.empty_like(found.probs)
    for name in np.unique(slide.astype(str)):
        rows = np.flatnonzero(slide == name)
        probs[rows] = closed_set(found.y[rows], found.probs[rows])
    return Predictions(found.classes, found.table, found.y, probs, found.outside)


def verdict(expected: str, difference: Mapping[str, float], noise: float) -> str:
    """Return whether a difference is there, and goes where theory says.

    It is there where its interval leaves out 0 and it is larger than what two seeds differ by in 95 of 100 cases
    (``noise``, see :func:`seed_noise`; 0 where no training is involved). With a single seed the noise is NaN, and
    nothing can be told from it.
    """
    value = difference["value"]
    apart = difference["low"] > 0 or difference["high"] < 0
    if not (apart and abs(value) > noise):
        return AS_EXPECTED if expected == SAME else NOT_SEEN
    if expected == SAME:
        return AGAINST
    return AS_EXPECTED if (value > 0) == (expected == MORE) else AGAINST


def audit(
    runs: Sequence[Run],
    reference: Run,
    seeds: pd.DataFrame,
    options: Options,
    *,
    idle: Mapping[str, str],
    policy: Mapping[str, Any] | None,
    selecting: int,
) -> pd.DataFrame:
    """Return the effect of each flaw on the macro-F1 of the fused model.

    Parameters
    ----------
    runs
        The runs with one switch on, and ``released``.
    seeds
        :func:`nuclass.evaluation.ablation.spread` of runs that differ in their seed.
    idle
        Switch -> why it changes nothing in this study; :func:`idle_by_cells` adds to it.
    policy
        From :func:`policy_optimism`; None where it was not measured.
    selecting
        How many val cells choose the reference's gate: ``n_select`` of its ``metrics.json``.

    Returns
    -------
    DataFrame
        One row a switch and the reference first, with the columns :data:`COLUMNS`. ``estimate`` is on the cohorts, as a
        study should report; ``val`` is on the cells that chose the models, of which the original's logs and ablations
        are; ``val_difference`` is to the reference's val (see :func:`nuclass.evaluation.ablation.compare_runs` where
        the cells are others). ``optimism`` is val minus cohorts, which organs and classes that only one of them has
        are part of; ``flattery`` is how much more than the reference's it is, see :func:`_flattery`. A verdict on val
        is that of ``val_difference``.
    """
    table = compare_runs([reference, *runs], reference, options)
    fused = table[(table["model"] == FUSED) & (table["metric"] == "macro_f1")]
    idle = {**idle, **idle_by_cells(selecting)}
    noise = {
        row["cells"]: seed_noise(float(row["sd"]), int(row["runs"]))
        for _, row in seeds[(seeds["model"] == FUSED) & (seeds["metric"] == "macro_f1")].iterrows()
    }
    rows = []
    for name in dict.fromkeys(fused["run"]):
        mine = {row["cells"]: row for _, row in fused[fused["run"] == name].iterrows()}
        rows.append(_row(str(name), mine, noise, idle))
    rows.append(_closed_set(reference, rows[0], options))
    if policy is not None:
        rows.append(_policy(policy))
    for row in rows:
        if row["switch"] == RELEASED:
            row |= _released(next(run for run in runs if run.name == RELEASED), reference, row, options, noise)
    rows = [row | _flattery(row) for row in rows]
    order = {name: place for place, name in enumerate([reference.name, *EXPECTED])}
    rows.sort(key=lambda row: order.get(row["switch"], len(order)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(name: str, mine: Mapping[str, Any], noise: Mapping[str, float], idle: Mapping[str, str]) -> dict[str, Any]:
    cohorts, val = mine[COHORT_CELLS], mine[VAL_CELLS]
    row: dict[str, Any] = {
        "switch": name,
        "metric": "macro_f1",
        "cells": int(cohorts["n_cells"]),
        **{key: cohorts[key] for key in ("estimate", "low", "high")},
        **{key: cohorts[key] for key in ("difference", "difference_low", "difference_high")},
        **{"val": val["estimate"], "val_low": val["low"], "val_high": val["high"]},
        **{f"val_difference{end}": val[f"difference{end}"] for end in _ENDS.values()},
        "optimism": val["estimate"] - cohorts["estimate"],
        "idle": idle.get(name, ""),
    }
    if name in EXPECTED:
        where, expected, why = EXPECTED[name]
        gap = {key: mine[where][f"difference{end}"] for key, end in _ENDS.items()}
        told = IDLE if idle.get(name) else verdict(expected, gap, noise.get(where, 0.0))
        row |= {"expected_on": where, "expected": expected, "why": why, "verdict": told}
        row["seed_noise"] = noise.get(where, math.nan)
    return row


_ENDS = {"value": "", "low": "_low", "high": "_high"}


def _told(switch: str, difference: Mapping[str, float]) -> dict[str, Any]:
    where, expected, why = EXPECTED[switch]
    found = {"expected_on": where, "expected": expected, "why": why, "verdict": verdict(expected, difference, 0.0)}
    return {"switch": switch, "idle": "", "seed_noise": 0.0, **found, **_gap(difference)}


def _gap(difference: Mapping[str, float]) -> dict[str, float]:
    return {f"difference{end}": difference[key] for key, end in _ENDS.items()}


def _estimate(value: Mapping[str, float]) -> dict[str, float]:
    return {"estimate": value["value"], "low": value["low"], "high": value["high"]}


def _closed_set(reference: Run, first: Mapping[str, Any], options: Options) -> dict[str, Any]:
    found = read_predictions(list(reference.cohorts[GATE]))
    result = options.bootstrap({"closed": closed(found), "open": found}, [("closed", "open")])
    row = _told(CLOSED_SET, result["differences"]["closed-open"]["macro_f1"])
    mine = _estimate(result["models"]["closed"]["macro_f1"])
    return {"metric": "macro_f1", "cells": first["cells"], **row, **mine}


def policy_optimism(fusion: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tuning the safety policy on the reported cells adds to its accuracy, on all cohorts.

    ``fusion`` is ``results/evaluation/fusion.json``. The policy is tuned for accuracy, so its macro-F1 need not gain.
    Keys: ``n_cells``, ``tuned_on_test`` and the paired ``difference`` to tuning on val, each ``{value, low, high}``.
    """
    found = fusion["cohorts"][ALL]
    return {
        "n_cells": found["n_cells"],
        "tuned_on_test": found["models"]["safe_on_reported"]["accuracy"],
        "difference": found["differences"]["safe_on_reported-safe_on_val"]["accuracy"],
    }


def _policy(policy: Mapping[str, Any]) -> dict[str, Any]:
    row = _told(POLICY_ON_TEST, policy["difference"])
    return {"metric": "accuracy", "cells": policy["n_cells"], **row, **_estimate(policy["tuned_on_test"])}


def _released(
    run: Run, reference: Run, row: Mapping[str, Any], options: Options, noise: Mapping[str, float]
) -> dict[str, Any]:
    """Return the row of all flaws with the cohorts as a closed set; it is judged there, and on val."""
    base, found = read_pair(reference.cohorts[GATE], run.cohorts[GATE])
    result = options.bootstrap({"reference": base, "run": closed(found)}, [("run", "reference")])
    mine, gap = _estimate(result["models"]["run"]["macro_f1"]), result["differences"]["run-reference"]["macro_f1"]
    on_val = {key: row[f"val_difference{end}"] for key, end in _ENDS.items()}
    return {
        **mine,
        **_gap(gap),
        "optimism": row["val"] - mine["estimate"],
        "verdict": verdict(row["expected"], gap, noise.get(COHORT_CELLS, 0.0)),
        "val_expected": EXPECTED_ON_VAL[RELEASED],
        "val_verdict": verdict(EXPECTED_ON_VAL[RELEASED], on_val, noise.get(VAL_CELLS, 0.0)),
    }


def idle_by_cells(selecting: int) -> dict[str, str]:
    """Return the switches that change nothing where so few val cells choose the gate, each with why.

    ``selecting`` counts the selecting part of val alone, the other part fits the gate.
    """
    if selecting > FIRST_CELLS:
        return {}
    return {"gate_first_cells": f"the gate is chosen by {selecting:,} val cells, no more than {FIRST_CELLS:,}"}


def _flattery(row: Mapping[str, Any]) -> dict[str, float]:
    """Return by how much a flaw makes a report look better than the model is, beyond the reference's.

    That is the optimism minus the reference's, of the val cells and classes that both have: ``val_difference`` minus
    ``difference``, which are of different slides and so independent. A switch that only changes how the cohorts are
    read has no val: what it flatters by is its difference.
    """
    gap = {key: row[f"difference{end}"] for key, end in _ENDS.items()}
    if "val_difference" in row:
        on_val = {key: row[f"val_difference{end}"] for key, end in _ENDS.items()}
        gap = independent_difference(on_val, gap)
    return {f"flattery{end}": gap[key] for key, end in _ENDS.items()}
