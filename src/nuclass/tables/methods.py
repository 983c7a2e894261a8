"""The methods of a study in words, with its own numbers and settings: one page of HTML for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, read_json
from nuclass.core.names import TEST, TRAIN, VAL

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:46em;margin:2em auto;padding:0 1em;color:#222}h1{font-size:1.5em}"
    "h2{font-size:1.1em;margin:1.4em 0 .3em}p{margin:.3em 0}table{border-collapse:collapse;margin:.6em 0}"
    "td,th{padding:.15em .9em .15em 0;text-align:left;border-bottom:1px solid #ddd}td.n,th.n{text-align:right}"
)
_GIVEN = "labels that came with the slide"


def write_methods(
    output: str | Path,
    *,
    config: Mapping[str, Any],
    models: Mapping[str, Any],
    composition: str | Path,
    quality: str | Path,
    metrics: Mapping[str, str | Path],
    protocol: str,
    packages: Mapping[str, str | None],
    synthetic: bool,
) -> None:
    """Write the page.

    Parameters
    ----------
    output
        ``.html``.
    config, models
        Settings of the study and of its models, in full.
    composition, quality
        CSV of cells by ``slide organ role split class``, and of labelled cells by slide.
    metrics
        ``metrics.json`` of each model, by name.
    protocol, packages
        In words; version of each package.
    synthetic
        Whether slides are generated.
    """
    counts, labels = pd.read_csv(composition), pd.read_csv(quality)
    if missing := {"slide", "organ", "role", "split", "class", "cells"} - set(counts):
        raise UserError("The table of cells lacks columns", where=composition, expected=sorted(missing))
    trained = {name: read_json(path) for name, path in metrics.items()}
    parts = [
        ("Slides", _slides(counts, synthetic)),
        ("Images and windows", _images(config)),
        ("Labels", _labels(config, labels)),
        ("Division of the training slides", _splits(config, counts)),
        ("Local model", _local(models["local"], trained["local"])),
        ("Global model", _global(models, trained["global"])),
        ("Gate", _gate(models["gate"], trained["gate"])),
        ("Evaluation", _evaluation(config, counts)),
        ("Protocol and seeds", _seeds(config, models, protocol)),
    ]
    body = "".join(f"<h2>{escape(title)}</h2><p>{escape(text)}</p>" for title, text in parts)
    body += "<h2>Training</h2>" + _trained(trained) + "<h2>Versions</h2>" + _versions(packages)
    title = f"Methods of the study {config['study']}"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    with atomic_path(output) as path:
        path.write_text(f"{page}<body><h1>{escape(title)}</h1>{body}</body></html>\n", encoding="utf-8")


def _number(n: int, one: str, more: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else more or one + 's'}"


def _slides(counts: pd.DataFrame, synthetic: bool) -> str:
    told = []
    for role, name in (("train", "training slide"), ("cohort", "held-out cohort")):
        part = counts[counts["role"] == role]
        organs = ", ".join(dict.fromkeys(part["organ"]))
        slides = part["slide"].nunique()
        told.append(f"{_number(slides, name)} ({_number(part['organ'].nunique(), 'organ')}: {organs or 'none'})")
    text = f"The study has {told[0]} and {told[1]}, with {_number(counts['class'].nunique(), 'class', 'classes')}."
    if synthetic:
        text += " Synthetic slides are among them: results on these show that the method works as designed, no more."
    return text


def _images(config: Mapping[str, Any]) -> str:
    mpp, windows = config["mpp"], config["windows"]
    sides = [f"{windows[name]} px ({windows[name] * mpp:g} um)" for name in ("local", "global")]
    return (
        f"H&E images are stored at {mpp:g} um/px after the alignment with the run. Around each nucleus the local "
        f"window "
        f"is {sides[0]} and the global one {sides[1]}."
    )


def _labels(config: Mapping[str, Any], quality: pd.DataFrame) -> str:
    settings = config["labels"]
    cells, good = int(quality["cells"].sum()), int(quality["with_class"].sum())
    rule = "calibrated confidence" if settings["confidence"] == "calibrated" else "confidence by the original's rule"
    source = "marker genes" if settings["source"] == "markers" else f"{_GIVEN} or marker genes ({settings['source']})"
    return (
        f"Labels come from {source}. Cells with a {rule} of {settings['min_confidence']} or more keep theirs: of "
        f"{cells:,} cells {good:,} have a label with a class of the study ({100 * good / max(cells, 1):.1f} %), "
        f"{int(quality['abstained'].sum()):,} abstain and {int(quality['dropped'].sum()):,} fail quality control."
    )


def _splits(config: Mapping[str, Any], counts: pd.DataFrame) -> str:
    training = counts[counts["role"] == "train"].groupby("split")["cells"].sum()
    cells = {name: int(training.get(name, 0)) for name in (TRAIN, VAL, TEST, "buffer")}
    test = f", {cells[TEST]:,} test" if cells[TEST] else ""
    return (
        f"Each training slide is cut in space (layout {config['splits']['layout']}): {cells[TRAIN]:,} cells train, "
        f"{cells[VAL]:,} validation{test}. {cells['buffer']:,} cells in a buffer of "
        f"{config['splits']['buffer_um']:g} um "
        "between them are used by none."
    )


def _network(section: Mapping[str, Any]) -> str:
    network = section["backbone"]
    side = f" on {network['input_px']} px" if "input_px" in network else ""
    return f"{network['name']}{side}"


def _fit(section: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return what training was told and what came of it, in words."""
    told, run = section["optimizer"], section["trainer"]
    rates = f"learning rates {told['lr_head']:g} (head) and {told['lr_backbone']:g} (backbone)"
    batch = found.get("effective_batch_size", run["batch_size"])
    return (
        f"AdamW, {rates}, weight decay {told['weight_decay']:g}, batches of {batch} cells, at most "
        f"{_number(run['max_epochs'], 'epoch')}, patience {run['patience']}. It trained "
        f"{_number(found['epochs'], 'epoch')} "
        f"on {found['n_train']:,} cells and has {found['parameters']:,} parameters; temperature "
        f"{found['temperature']:.3f}."
    )


def _local(section: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    ways = {"film": "modulates its features (FiLM)", "concat": "stands behind its features", "none": "is not used"}
    loss = section["loss"]
    return (
        f"{_network(section)} sees the local window; the organ {ways[section['model']['organ']]}. The loss is "
        f"cross-entropy "
        f"with class weights by effective number (beta {loss['beta']:g}) and label smoothing "
        f"{loss['label_smoothing']:g}. " + _fit(section, found)
    )


def _global(models: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    section = models["global"]
    loss = section["loss"]
    doubt = "1 - p_A(y)" if loss["doubt"] == "label" else "the local model's entropy"
    return (
        f"A backbone of its own on the local window, which starts from the local model's, and features of a frozen "
        f"network "
        f"({_network(models['context'])}, read at pyramid level {models['context']['read_level']}) on the global "
        f"window, each "
        f"projected to {section['model']['project']}. In the guided loss a cell has the weight "
        f"({doubt})^{loss['gamma']:g}. " + _fit(section, found)
    )


def _gate(section: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    layers = " and ".join(map(str, section["model"]["hidden"])) or "no"
    project = section["model"]["project"]
    seen = f"the features of both models (projected to {project}) and " if project else ""
    return (
        f"A network with hidden layers of {layers} units sees {seen}eight statistics of both sets of probabilities, "
        f"and gives "
        f"the weight of the global model in each cell. It was fitted to {found['n_fit']:,} cells of validation and "
        f"stopped by "
        f"{found['n_select']:,} others, {_number(found['epochs'], 'epoch')}; temperature {found['temperature']:.3f}."
    )


def _evaluation(config: Mapping[str, Any], counts: pd.DataFrame) -> str:
    settings, cohorts = config["evaluation"], counts[(counts["role"] == "cohort") & (counts["split"] == TEST)]
    return (
        f"{int(cohorts['cells'].sum()):,} labelled cells of {_number(cohorts['slide'].nunique(), 'cohort')} are "
        f"reported on "
        f"and chose nothing. Intervals: 95 %, {settings['bootstrap']:,} bootstrap samples of blocks of "
        f"{settings['block_um']:g} um. A class counts in macro averages with {settings['min_support']} cells or more."
    )


def _seeds(config: Mapping[str, Any], models: Mapping[str, Any], protocol: str) -> str:
    named: Sequence[tuple[str, Any]] = [
        *((name, config.get(name, {}).get("seed")) for name in ("labels", "splits", "evaluation")),
        *((f"{name} model", models[name].get("seed")) for name in ("local", "global", "gate")),
    ]
    seeds = ", ".join(f"{name} {seed}" for name, seed in named if seed is not None)
    return f"Protocol: {protocol}. Seeds: {seeds}. Settings in full: config.yaml and models.yaml beside this page."


def _trained(trained: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, f"{found['epochs']}", f"{found['seconds'] / 60:.1f}", f"{found['parameters']:,}",
         f"{found['val']['f1_macro']:.3f}", f"{found['val']['accuracy']:.3f}")
        for name, found in trained.items()
    ]  # fmt: skip
    return _table(("Model", "Epochs", "Minutes", "Parameters", "Macro-F1 (val)", "Accuracy (val)"), rows)


def _versions(packages: Mapping[str, str | None]) -> str:
    return _table(("Package", "Version"), [(name, version) for name, version in packages.items() if version])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["", *[' class="n"'] * (len(head) - 1)]
    first = "".join(f"<th{mark}>{escape(text)}</th>" for mark, text in zip(marks, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{escape(text)}</td>" for mark, text in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{first}</tr>{body}</table>"
