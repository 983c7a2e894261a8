"""Compare models, their mean, an oracle and class frequencies on the same cells, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.files import write_csv, write_json
from nuclass.core.names import FUSED, GATE, GLOBAL, LOCAL, MEAN, MODELS, ORACLE
from nuclass.core.readings import CLOSED, MAJORITY, OPEN, ORGAN_PRIOR, READINGS
from nuclass.evaluation.bootstrap import paired_bootstrap, spatial_blocks
from nuclass.evaluation.branch import branches, oracle, plain_mean
from nuclass.evaluation.cohort import Rules, check_fair
from nuclass.evaluation.leak import check_same_study, read_seen
from nuclass.evaluation.metrics import read_as
from nuclass.evaluation.predictions import Predictions, read_models
from nuclass.evaluation.priors import majority, organ_prior, read_composition

ALL = "all"
COLUMNS = "cohort name metric class value low high best behind behind_low behind_high in_macro".split()


def compare(
    predictions: Mapping[str, Predictions],
    *,
    mpp: float,
    block_um: float,
    draws: int,
    seed: int,
    min_support: int = 1,
    bins: int = 15,
    groups: Mapping[str, Sequence[str]] | None = None,
    composition: pd.DataFrame | None = None,
    closed_set: bool = False,
) -> dict[str, Any]:
    """Return intervals of every row of a comparison, paired differences and branch counts.

    ``predictions`` holds the models ``local``, ``global`` and ``gate`` on the same cells, and any others, which
    become rows of their own. Further rows: ``mean``, ``oracle`` and, with ``composition`` (see
    :func:`nuclass.evaluation.priors.read_composition`), ``majority`` and ``organ_prior``. Positions are
    slide-store pixels of ``mpp`` micrometres. All log losses are of calibrated probabilities; the mean
    is that of the two branches' calibrated probabilities. With ``closed_set`` all probabilities are scaled to the
    classes that occur among these cells, the original's way.
    """
    fused = predictions[GATE]
    y, table = fused.y, fused.table
    blocks = spatial_blocks(table["slide"], table["x_px"].to_numpy() * mpp, table["y_px"].to_numpy() * mpp, block_um)
    probs = {name: read_as(y, found.probs, closed=closed_set) for name, found in predictions.items()}
    p_local, p_global, p_fused = (probs[model] for model in MODELS)
    values = {LOCAL: p_local, GLOBAL: p_global, MEAN: plain_mean(p_local, p_global), FUSED: p_fused}
    values |= {name: p for name, p in probs.items() if name not in MODELS}
    if composition is not None:
        for name, p in (
            (MAJORITY, majority(len(y), fused.classes, composition)),
            (ORGAN_PRIOR, organ_prior(table["organ"], fused.classes, composition)),
        ):
            values[name] = read_as(y, p, closed=closed_set)
    result = paired_bootstrap(
        y,
        {**values, ORACLE: oracle(y, p_local, p_global)},
        blocks,
        fused.classes,
        pairs=[(FUSED, name) for name in values if name != FUSED],
        groups=groups,
        ranked=list(values),
        draws=draws,
        seed=seed,
        min_support=min_support,
        bins=bins,
    )
    result["set"] = CLOSED if closed_set else OPEN
    result["branches"] = branches(y, p_local, p_global, p_fused, table["gate"].to_numpy(), min_support=min_support)
    return result


def compare_cohorts(
    paths: Mapping[str, Mapping[str, str | Path]],
    out_json: str | Path,
    out_csv: str | Path,
    *,
    mpp: float,
    block_um: float,
    draws: int,
    seed: int,
    min_support: int = 1,
    bins: int = 15,
    closed_set: bool = False,
    composition: str | Path | pd.DataFrame | None = None,
    out_organs: str | Path | None = None,
) -> dict[str, Any]:
    """Compare the models on each cohort, on all cohorts pooled and on each organ; write JSON and flat tables.

    ``paths`` is model -> cohort -> prediction table, all models on the same cells. The flat table has the columns
    ``cohort``, ``name`` (a row of :func:`compare`, or ``fused-local`` for a difference), ``metric``, ``class`` (for F1
    by class), ``value``, ``low`` and ``high``, and for a model the paired difference to the best of its row (``best
    behind behind_low behind_high``; the oracle is not among these). ``in_macro`` of F1 by class: whether the class has
    the ``min_support`` cells here to count in macro-F1. ``out_organs``, if given, has ``organ`` for ``cohort``.
    Returns results by cohort.
    """
    cohorts = list(paths[GATE])
    rules: dict[str, Any] = {"mpp": mpp, "block_um": block_um, "draws": draws, "seed": seed}
    rules |= {"min_support": min_support, "bins": bins, "closed_set": closed_set}
    options = rules | {"composition": None if composition is None else read_composition(composition)}
    selections = {cohort: [cohort] for cohort in cohorts} | {ALL: cohorts}
    results: dict[str, Any] = {}
    cells: dict[str, pd.MultiIndex] = {}
    for name, members in selections.items():
        models = read_models({model: [files[member] for member in members] for model, files in paths.items()})
        cells[name] = models[GATE].keys
        results[name] = compare(models, **options)
    organs: dict[str, Any] = {}
    for organ, rows in models[GATE].table.groupby("organ", sort=True).indices.items():
        same = [name for name in cohorts if cells[name].equals(cells[ALL][rows])]
        part = {model: found.take(rows) for model, found in models.items()}
        organs[str(organ)] = results[same[0]] if same else compare(part, **options)
    reading = CLOSED if closed_set else OPEN
    head = {"options": rules, "set": reading, "rule": READINGS[reading]}
    write_json(out_json, {**head, "cohorts": results, "organs": organs})
    write_csv(out_csv, flatten(results))
    if out_organs is not None:
        write_csv(out_organs, flatten(organs).rename(columns={"cohort": "organ"}))
    return results


def check_models(
    paths: Mapping[str, Mapping[str, str | Path]],
    checkpoints: Mapping[str, str | Path],
    *,
    patients: Mapping[str, str] | None = None,
    training: Mapping[str, str] | None = None,
) -> None:
    """Raise when the models may not be compared: other classes, other studies, or cells that one was trained on.

    ``paths`` is model -> cohort -> prediction table; ``training`` maps the study's training slides to their organs.
    """
    seen = {model: read_seen(checkpoints[model]) for model in paths}
    check_same_study(seen)
    for model, found in read_models({model: list(files.values()) for model, files in paths.items()}).items():
        where = list(paths[model].values())
        check_fair(found, seen[model], patients=patients, training=training, where=where, checkpoint=checkpoints[model])


def by_model(paths: Sequence[str | Path], models: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Sort prediction tables ``.../{model}/{slide}.parquet`` into model -> slide -> path."""
    files = [Path(path) for path in paths]
    return {model: {file.stem: file for file in files if file.parent.name == model} for model in models}


def flatten(results: Mapping[str, Any]) -> pd.DataFrame:
    """Return the comparison as a long table, one row a number, with the columns :data:`COLUMNS`."""
    rows: list[dict[str, Any]] = []
    for cohort, result in results.items():
        behind, counted = result["behind"], set(result["macro_classes"])
        for name, values in {**result["models"], **result["differences"]}.items():
            mine = behind.get(name, {})
            for metric, value in values.items():
                told = {"cohort": cohort, "name": name, "metric": metric, "class": ""}
                if metric == "f1":
                    apart = mine.get("f1", {})
                    rows += [
                        {**told, "class": label, **interval, **_to_best(apart.get(label)), "in_macro": label in counted}
                        for label, interval in value.items()
                    ]
                elif metric != "groups":
                    rows.append({**told, **value, **_to_best(mine.get(metric))})
    return pd.DataFrame(rows, columns=COLUMNS).replace({np.inf: np.nan})


def _to_best(found: Mapping[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return {"best": ""}
    return {"best": found["best"], **{f"behind{end}": found[key] for key, end in _ENDS.items()}}


_ENDS = {"value": "", "low": "_low", "high": "_high"}


def comparison_options(evaluation: Mapping[str, Any], *, closed_set: bool = False) -> dict[str, Any]:
    """Return the options of :func:`compare_cohorts` from the configuration's section ``evaluation``."""
    rules = Rules.of(evaluation, closed_set=closed_set)
    names = ("block_um", "draws", "seed", "min_support", "bins", "closed_set")
    return {name: getattr(rules, name) for name in names}
