"""The fused gate against simpler ways to fuse the same two branches, on the same cells, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nuclass.core.class_names import WAYS
from nuclass.core.errors import UserError
from nuclass.core.files import write_csv, write_json
from nuclass.core.log import get_logger
from nuclass.core.names import FUSED, GATE, GLOBAL, LOCAL, MEAN, MODELS, ORACLE, VAL
from nuclass.evaluation.bootstrap import paired_bootstrap, spatial_blocks
from nuclass.evaluation.branch import oracle, plain_mean
from nuclass.evaluation.compare import ALL, flatten
from nuclass.evaluation.fusion import Stacking, fit_stacking, fit_temperature, max_confidence, product, temper
from nuclass.evaluation.metrics import read_as
from nuclass.evaluation.policy import SafetyPolicy, fit_policy
from nuclass.evaluation.predictions import Predictions, read_models

PRODUCT, MAX_CONFIDENCE, STACKING, SAFE = "product", "max_confidence", "stacking", "safe"
SAFE_ON_VAL, SAFE_ON_REPORTED = "safe_on_val", "safe_on_reported"
RULES = {MEAN: plain_mean, PRODUCT: product, MAX_CONFIDENCE: max_confidence}
OTHERS = (*RULES, STACKING, SAFE, ORACLE)
PAIRS = (*((FUSED, name) for name in (LOCAL, GLOBAL, *OTHERS)), (SAFE_ON_REPORTED, SAFE_ON_VAL))
_log = get_logger(__name__)


@dataclass(frozen=True)
class Fits:
    """What is learned from val cells: a temperature of each rule, the stacking, and the policy with its own."""

    temperatures: dict[str, float]
    stacking: Stacking
    policy: SafetyPolicy


def select_val(predictions: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Return the val cells of each model's predictions.

    Raises
    ------
    UserError
        Where there is none.
    """
    out = {name: found.take(np.flatnonzero(found.table["split"] == VAL)) for name, found in predictions.items()}
    empty = [name for name, found in out.items() if not len(found.y)]
    if empty:
        splits = sorted({str(split) for found in predictions.values() for split in found.table["split"]})
        raise UserError(
            "There is no val cell to fit stacking and policy to",
            found=f"predictions of {', '.join(empty)} of the splits {', '.join(splits)}",
            expected="val cells of training slides with a label",
            fix="give the predictions of the training slides, and a share of val above 0 in the configuration",
        )
    return out


def fit_rules(val: Mapping[str, Predictions], *, mpp: float, block_um: float, seed: int) -> Fits:
    """Fit temperatures, stacking and policy to the val cells of ``local``, ``global`` and ``gate``.

    Squares of ``block_um`` micrometres are not cut when the stacking's penalty is chosen.
    """
    y, p_local, p_global = val[GATE].y, val[LOCAL].probs, val[GLOBAL].probs
    gate = val[GATE].table["gate"].to_numpy(np.float64)
    policy = fit_policy(y, p_local, p_global, gate)
    temperatures = {name: fit_temperature(y, rule(p_local, p_global)) for name, rule in RULES.items()}
    temperatures[SAFE] = fit_temperature(y, policy.apply(p_local, p_global, gate))
    table = val[GATE].table
    x_um, y_um = table["x_px"].to_numpy() * mpp, table["y_px"].to_numpy() * mpp
    squares = spatial_blocks(table["slide"], x_um, y_um, block_um).of_cell
    stacking = fit_stacking(y, p_local, p_global, squares, seed=seed)
    missing = [name for i, name in enumerate(val[GATE].classes) if i not in stacking.fitted]
    if missing:
        _log.warning("Stacking saw no val cell of %s: there it keeps the branches' mean", ", ".join(missing))
    return Fits(temperatures, stacking, policy)


def fuse_all(
    predictions: Mapping[str, Predictions], fits: Fits, released: SafetyPolicy, *, policy_on_test: bool
) -> dict[str, np.ndarray]:
    """Return every way's probabilities (N, C) on the same cells, and the oracle's hard predictions (N,).

    ``released`` is the policy tuned on these very cells. ``safe`` is the one tuned on val or, under
    ``policy_on_test``, that one; both are there under ``safe_on_val`` and ``safe_on_reported``.
    """
    y, p_local, p_global = predictions[GATE].y, predictions[LOCAL].probs, predictions[GLOBAL].probs
    gate = predictions[GATE].table["gate"].to_numpy(np.float64)
    out = {LOCAL: p_local, GLOBAL: p_global, FUSED: predictions[GATE].probs}
    for name, rule in RULES.items():
        out[name] = temper(rule(p_local, p_global), fits.temperatures[name])
    out[STACKING] = fits.stacking.predict(p_local, p_global)
    out[ORACLE] = oracle(y, p_local, p_global)
    for name, policy in ((SAFE_ON_VAL, fits.policy), (SAFE_ON_REPORTED, released)):
        out[name] = temper(policy.apply(p_local, p_global, gate), fits.temperatures[SAFE])
    out[SAFE] = out[SAFE_ON_REPORTED if policy_on_test else SAFE_ON_VAL]
    return out


def compare_fusions(
    predictions: Mapping[str, Predictions],
    fits: Fits,
    *,
    mpp: float,
    block_um: float,
    draws: int,
    seed: int,
    bins: int,
    min_support: int = 1,
    policy_on_test: bool = False,
    closed_set: bool = False,
) -> dict[str, Any]:
    """Return metrics of every way to fuse with intervals, and paired differences, also to the best way (``behind``).

    ``predictions`` holds ``local``, ``global`` and ``gate`` on the same cells; positions are pixels of ``mpp``
    micrometres. Differences are the fused gate minus each other way, and the policy tuned on these cells minus
    that tuned on val: its optimism. ``policy`` holds both policies as tuned, and their accuracies here. With
    ``closed_set`` all three models are read as of the closed set, the original's way.
    """
    predictions = {
        name: replace(one, probs=read_as(one.y, one.probs, closed=closed_set)) for name, one in predictions.items()
    }
    fused = predictions[GATE]
    table, y = fused.table, fused.y
    blocks = spatial_blocks(table["slide"], table["x_px"].to_numpy() * mpp, table["y_px"].to_numpy() * mpp, block_um)
    gate = table["gate"].to_numpy(np.float64)
    released = fit_policy(y, predictions[LOCAL].probs, predictions[GLOBAL].probs, gate)
    values = fuse_all(predictions, fits, released, policy_on_test=policy_on_test)
    options: dict[str, Any] = {"draws": draws, "seed": seed, "min_support": min_support, "bins": bins}
    ranked = [name for name in WAYS if name in values and name != ORACLE]
    result = paired_bootstrap(y, values, blocks, fused.classes, pairs=PAIRS, ranked=ranked, **options)
    result["policy"] = {
        "in_force": SAFE_ON_REPORTED if policy_on_test else SAFE_ON_VAL,
        SAFE_ON_VAL: fits.policy.to_json(),
        SAFE_ON_REPORTED: released.to_json(),
        "accuracy_on_val": fits.policy.accuracy,
        "accuracy": {name: result["models"][name]["accuracy"]["value"] for name in (SAFE_ON_VAL, SAFE_ON_REPORTED)},
    }
    return result


def compare_fusions_of_cohorts(
    paths: Mapping[str, Mapping[str, str | Path]],
    training: Mapping[str, Mapping[str, str | Path]],
    out_json: str | Path,
    out_csv: str | Path,
    **options: Any,
) -> dict[str, Any]:
    """Fit on val cells of the training slides, compare on each cohort and on all pooled, write JSON and a table.

    ``paths`` and ``training`` are model -> slide -> prediction table; ``options`` are those of
    :func:`compare_fusions`. The table's columns are those of :func:`nuclass.evaluation.compare.flatten`.
    """
    val = select_val(read_models({model: list(files.values()) for model, files in training.items()}))
    fits = fit_rules(val, **{name: options[name] for name in ("mpp", "block_um", "seed")})
    cohorts = list(paths[GATE])
    _check_apart(cohorts, val[GATE])
    results: dict[str, Any] = {}
    for name, members in _selections(cohorts).items():
        models = read_models({model: [paths[model][member] for member in members] for model in MODELS})
        _check_classes(models, val)
        results[name] = compare_fusions(models, fits, **options)
    facts = {
        "val_cells": len(val[GATE].y),
        "val_slides": sorted(set(val[GATE].table["slide"])),
        "temperatures": fits.temperatures,
        "stacking_strength": fits.stacking.strength,
        "stacking_classes": [val[GATE].classes[i] for i in fits.stacking.fitted],
    }
    write_json(out_json, {"options": options, "fitted": facts, "cohorts": results})
    write_csv(out_csv, flatten(results))
    return results


def _selections(cohorts: Sequence[str]) -> dict[str, list[str]]:
    return {cohort: [cohort] for cohort in cohorts} | {ALL: list(cohorts)}


def _check_classes(models: Mapping[str, Predictions], val: Mapping[str, Predictions]) -> None:
    if models[GATE].classes != val[GATE].classes:
        raise UserError(
            "Cohorts and training slides were predicted with different classes",
            found=list(models[GATE].classes),
            expected=list(val[GATE].classes),
            fix="predict all slides with the same checkpoints",
        )


def _check_apart(cohorts: Sequence[str], val: Predictions) -> None:
    both = sorted(set(cohorts) & set(val.table["slide"]))
    if both:
        raise UserError(
            "Stacking and policy would be fitted to slides that they are reported on",
            found=", ".join(both),
            expected="val cells of training slides, and cohorts that are held out",
        )
