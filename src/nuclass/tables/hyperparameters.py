"""The table of all settings: of the models, side by side, and of the study around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.protocol import SWITCHES, describe, parse_protocol
from nuclass.tables.layout import Cell, Table, grid

MODELS = {
    "context": "Context",
    "pretrain": "Context, pretraining",
    "local": "Local",
    "global": "Global",
    "gate": "Gate",
}
STUDY_SECTIONS = ("mpp", "windows", "qc", "alignment", "labels", "splits", "evaluation")
ELSEWHERE = ("augment.black_corners",)
"""Keys of the models that the protocol decides."""
_WHOLE = ("backbone.config", "backbone.kwargs")
_ORDER = ("part", "key", "group", "parameter", "unit")


def read_parameters(path: str | Path) -> pd.DataFrame:
    """Return the words for settings, in order: ``part`` (models, predict, study) and ``key group parameter unit``."""
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)[list(_ORDER)]


def flatten(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every setting; the arguments of a network stay together."""
    for key, value in settings.items():
        path = f"{before}{key}"
        if isinstance(value, Mapping) and path not in _WHOLE:
            yield from flatten(value, f"{path}.")
        elif path not in ELSEWHERE:
            yield path, value


def model_settings(models: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each column of the table by dotted key; a backbone that is given has no pretraining."""
    context = dict(models["context"])
    sections = {"context": context, "pretrain": context.pop("pretrain", None) or {}}
    sections |= {name: models[name] for name in ("local", "global", "gate")}
    return {name: dict(flatten(section)) for name, section in sections.items()}


def told(value: Any) -> str:
    """Return a setting as a table tells it: ``yes``, ``0.0003``, ``40, 112``, ``depth 3``; empty for nothing."""
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and value >= 10000 else f"{value:g}".replace("e-0", "e-")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inside(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_inside, value))
    return str(value)


def _inside(value: Any) -> str:
    """Return a setting inside another, where a list has its brackets."""
    if isinstance(value, list | tuple | Mapping):
        return f"[{told(value)}]"
    return told(value) or "none"


def settings_rows(
    config: Mapping[str, Any], models: Mapping[str, Any], paper: Mapping[str, Any], words: pd.DataFrame
) -> pd.DataFrame:
    """Return one row a setting and model, in the order of ``words``; settings without words come last, by their key.

    Parameters
    ----------
    config, models
        The settings in force, all defaults filled in.
    paper
        Those of the model file for the real study, likewise.
    words
        From :func:`read_parameters`.

    Returns
    -------
    ``part group parameter unit key``; ``model`` (a key of :data:`MODELS`; empty in the parts predict, study and
    protocol), ``value`` and ``paper``, as :func:`told`; ``differs``, whether the real study's file says another value.
    Study and protocol stand in no model file, so their ``paper`` is empty, as is that of a pretraining it lacks.
    """
    records: list[dict[str, Any]] = []
    mine, theirs = model_settings(models), model_settings(paper)
    for name, settings in mine.items():
        given = theirs[name]
        records += [_record("models", name, key, value, given.get(key), bool(given)) for key, value in settings.items()]
    predict = dict(flatten(paper["predict"]))
    records += [_record("predict", "", key, value, predict.get(key), True) for key, value in flatten(models["predict"])]
    study = {name: config[name] for name in STUDY_SECTIONS if name in config}
    records += [_record("study", "", key, value, None, False) for key, value in flatten(study)]
    switches = parse_protocol(config.get("protocol"))
    records += [_record("protocol", "", name, getattr(switches, name), None, False) for name in SWITCHES]
    rows = pd.DataFrame(records).merge(words, on=["part", "key"], how="left")
    place = {(part, key): number for number, (part, key) in enumerate(zip(words["part"], words["key"], strict=True))}
    rows["place"] = [place.get(both, len(place)) for both in zip(rows["part"], rows["key"], strict=True)]
    rows["group"] = rows["group"].fillna(rows["part"].map({"protocol": "Protocol"})).fillna("Other")
    rows["parameter"] = rows["parameter"].fillna(rows["key"])
    parts = ["models", "predict", "study", "protocol"]
    rows["part"] = pd.Categorical(rows["part"], parts, ordered=True)
    rows = rows.sort_values(["part", "place"], kind="stable").fillna({"unit": ""})
    chosen = ["part", "group", "parameter", "unit", "key", "model", "value", "paper", "differs"]
    return rows[chosen].reset_index(drop=True)


def _record(part: str, model: str, key: str, value: Any, paper: Any, given: bool) -> dict[str, Any]:
    other = told(paper) if given else ""
    differs = given and told(value) != other
    return {"part": part, "model": model, "key": key, "value": told(value), "paper": other, "differs": differs}


def hyperparameters(
    config: Mapping[str, Any],
    models: Mapping[str, Any],
    paper: Mapping[str, Any],
    words: str | Path,
    *,
    file: str,
    paper_file: str,
) -> Table:
    """Lay out all settings in words: models side by side by group, then prediction and the study.

    ``file`` and ``paper_file`` name the model files of the study and of the real study, ``words`` is the table for
    :func:`read_parameters`; the rest is that of :func:`settings_rows`.
    """
    data = settings_rows(config, models, paper, read_parameters(words))
    of_models, single = data[data["part"] == "models"], data[data["part"].isin(["predict", "study"])]
    grids = []
    for group, rows in of_models.groupby("group", sort=False):
        shown = [name for name in MODELS if name in set(rows["model"])]
        lines = [_side_by_side(part, shown) for _, part in rows.groupby("key", sort=False)]
        texts = [MODELS[name] for name in shown]
        # Arguments of a network are long: they wrap in LaTeX.
        width = 0.6 / len(shown)
        wide = dict.fromkeys(texts, width) if group == "Network" else None
        grids.append(grid(lines, texts=texts, wide=wide, heading=f"Models: {str(group)[0].lower()}{str(group)[1:]}"))
    for group, rows in single.groupby("group", sort=False):
        lines = [{"parameter": _named(row), "value": _valued(row)} for row in rows.to_dict("records")]
        grids.append(grid(lines, texts=["value"], heading=str(group)))
    notes = [
        f"Settings of the models: {file}. In brackets: the value of {paper_file}, the models of the real study, where "
        "it is another. A dash: nothing is set, or the model has no such setting.",
        f"Protocol: {describe(parse_protocol(config.get('protocol')))}. The CSV lists each switch.",
    ]
    return Table("Settings", data, grids, notes)


def _side_by_side(rows: pd.DataFrame, models: list[str]) -> dict[str, Any]:
    found = {row["model"]: row for row in rows.to_dict("records")}
    first = {"parameter": _named(next(iter(found.values())))}
    return first | {MODELS[name]: _valued(found[name]) if name in found else Cell() for name in models}


def _named(row: Mapping[Any, Any]) -> str:
    return f"{row['parameter']}, {row['unit']}" if row["unit"] else str(row["parameter"])


def _valued(row: Mapping[Any, Any]) -> Cell:
    other = (row["paper"] or "not set") if row["differs"] else ""
    value = row["value"] or ("not set" if other else "")
    return Cell(value, behind=other)
