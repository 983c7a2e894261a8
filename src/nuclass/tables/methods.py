"""The methods of a study in words, with its own numbers and settings: one page of HTML for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, read_json
from nuclass.core.names import BUFFER, TEST, TRAIN, VAL
from nuclass.core.patch_rows import PATCHES
from nuclass.core.protocol import Protocol, describe, parse_protocol

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:46em;margin:2em auto;padding:0 1em;color:#222}h1{font-size:1.5em}"
    "h2{font-size:1.1em;margin:1.4em 0 .3em}p{margin:.3em 0}table{border-collapse:collapse;margin:.6em 0}"
    "td,th{padding:.15em .9em .15em 0;text-align:left;border-bottom:1px solid #ddd}td.n,th.n{text-align:right}"
)
Slides = Mapping[str, Mapping[str, str]]
_SOURCES = {
    "synthetic": "generated (synthetic)",
    "local": "from Xenium outputs at hand (local)",
    "dataset": "from public Xenium data sets (dataset)",
    PATCHES: "from files of windows (patches)",
}
_ALIGNED = {
    "given": "was given",
    "refine": "was given and then bettered on the picture",
    "register": "was found from the images",
}
_LABELS = {
    "markers": "marker genes, by the transcripts of each cell",
    "given": "others, as they were given",
    "given_then_markers": "others where they were given, else from marker genes",
    PATCHES: "the annotations of the files of windows",
}
_REPORTED = {
    "first_organ": "cells are predicted as of the first organ of the models' list",
    "closed_set": "predictions are forced into the classes that occur in the cohort",
    "policy_on_test": "the safety policy is tuned on the cells it is reported on",
}
_AUGMENTED = {
    "quarter turns and mirrors": ("dihedral",),
    "small turns": ("rotate",),
    "shifts": ("shift",),
    "zooms": ("zoom",),
    "stain": ("stain_scale", "stain_shift", "stain_mix"),
    "brightness": ("brightness",),
    "contrast": ("contrast",),
    "colour": ("saturation", "hue"),
    "blur": ("blur",),
    "noise": ("noise",),
}
"""What the keys of a section ``augment`` do."""
_LAYOUTS = {
    "bands": "cut in space into bands",
    "blocks": "cut in space into blocks",
    "box": "cut in space by one central box, which is validation",
    "given": "divided as the files came",
}


def write_methods(
    output: str | Path,
    *,
    config: Mapping[str, Any],
    models: Mapping[str, Any],
    composition: str | Path,
    quality: str | Path,
    metrics: Mapping[str, str | Path],
    slides: Slides,
    splits: Sequence[str | Path],
    checkpoints: Mapping[str, Mapping[str, str]],
    packages: Mapping[str, str | None],
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
    slides
        Of each slide of the sheet ``role organ source align labels``; an empty word takes that of the settings.
    splits
        ``results/splits/{slide}.json`` of the training slides.
    checkpoints
        Versions that each model was written with, by name.
    packages
        Version of each package in the environment that writes the page.
    """
    counts, labels = pd.read_csv(composition), pd.read_csv(quality)
    if missing := {"slide", "organ", "role", "split", "class", "cells"} - set(counts):
        raise UserError("The table of cells lacks columns", where=composition, expected=sorted(missing))
    trained = {name: read_json(path) for name, path in metrics.items()}
    protocol = parse_protocol(config.get("protocol"))
    parts = [
        ("Slides", _slides(slides, counts)),
        ("Images and windows", _images(config, slides, protocol) + _augmented(models, protocol)),
        ("Labels", _labels(config, slides, labels)),
        ("Division of the training slides", _splits(config, [*map(read_json, splits)], counts, protocol)),
        ("Local model", _local(models["local"], trained["local"])),
        ("Global model", _global(models, trained["global"])),
        ("Gate", _gate(models["gate"], trained["gate"], protocol)),
        ("Evaluation", _evaluation(config, counts, protocol)),
        ("Protocol and seeds", _seeds(config, models, describe(protocol))),
    ]
    body = "".join(f"<h2>{escape(title)}</h2><p>{escape(text)}</p>" for title, text in parts)
    body += "<h2>Training</h2>" + _trained(trained) + "<h2>Versions</h2>" + _versions(checkpoints, packages)
    title = f"Methods of the study {config['study']}"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    with atomic_path(output) as path:
        path.write_text(f"{page}<body><h1>{escape(title)}</h1>{body}</body></html>\n", encoding="utf-8")


def _number(n: int, one: str, more: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else more or one + 's'}"


def _several(n: int, one: str, more: str) -> str:
    """Return the form of a verb that goes with ``n``."""
    return one if n == 1 else more


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _slides(slides: Slides, counts: pd.DataFrame) -> str:
    told = []
    for role, name in (("train", "training slide"), ("cohort", "held-out cohort")):
        organs = [row["organ"] for row in slides.values() if row["role"] == role]
        named = list(dict.fromkeys(organs))
        told.append(f"{_number(len(organs), name)} ({_number(len(named), 'organ')}: {', '.join(named) or 'none'})")
    text = f"The study has {told[0]} and {told[1]}, with {_number(counts['class'].nunique(), 'class', 'classes')}."
    sources = Counter(row["source"] for row in slides.values())
    kinds = [f"{sources[name]} {words}" for name, words in _SOURCES.items() if sources[name]]
    text += f" By source: {_listed(kinds)}." if kinds else ""
    if sources["synthetic"]:
        text += " Results on generated slides show that the method works as designed, no more."
    return text


def _images(config: Mapping[str, Any], slides: Slides, protocol: Protocol) -> str:
    mpp, windows = config["mpp"], config["windows"]
    sides = [f"{windows[name]} px ({windows[name] * mpp:g} um)" for name in ("local", "global")]
    bundles = [row for row in slides.values() if row["source"] != PATCHES]
    text = ""
    if bundles:
        ways = Counter(row["align"] or config["alignment"]["align"] for row in bundles)
        told = _listed([f"{_ALIGNED[way]} ({_number(n, 'slide')})" for way, n in ways.items()])
        text += f"H&E images are stored at {mpp:g} um/px. Their alignment with the cells of the run {told}. "
        if protocol.inverted_mpp:
            text += (
                "By the protocol (inverted_mpp) the scale of the H&E was taken by the original's inverted formula, so "
                "the images are in truth at another scale (mpp_true of each store), and sizes in um given here for "
                "their windows are not true. "
            )
    if n := len(slides) - len(bundles):
        text += (
            f"{_number(n, 'slide')} came as files of windows that were cut elsewhere: scale and places of the cells "
            "are those of the files, and nothing was aligned. "
        )
    return text + f"Around each cell the local window is {sides[0]} and the global one {sides[1]}."


def _augmented(models: Mapping[str, Any], protocol: Protocol) -> str:
    """Return how windows are changed in training, model by model where they differ."""
    ways: dict[str, list[str]] = {}
    for name in ("local", "global"):
        section = {} if name == "global" and protocol.no_global_augmentation else models[name].get("augment") or {}
        if protocol.black_corners:
            section = {key: value for key, value in section.items() if not key.startswith("stain")}
        ways.setdefault(_changes(section), []).append(name)
    told = [
        f" In training windows of the {_listed(names)} model{'s' * (len(names) > 1)} {way}."
        for way, names in ways.items()
    ]
    views = 0 if protocol.no_global_augmentation or protocol.black_corners else models["context"].get("views", 0)
    if views:
        copies = _number(views, "changed copy", "changed copies")
        told.append(f" Their context features are of windows as they are and of {copies}.")
    return "".join(told)


def _changes(section: Mapping[str, Any]) -> str:
    """Return in words what is on in a section ``augment``."""
    on = [words for words, keys in _AUGMENTED.items() if any(section.get(key) for key in keys)]
    return f"are changed at random: {_listed(on)}" if on else "are not changed"


def _label_source(row: Mapping[str, str], config: Mapping[str, Any]) -> str:
    return PATCHES if row["source"] == PATCHES else row["labels"] or config["labels"]["source"]


def _labels(config: Mapping[str, Any], slides: Slides, quality: pd.DataFrame) -> str:
    settings = config["labels"]
    sources = Counter(_label_source(row, config) for row in slides.values())
    kinds = [f"{words} ({_number(sources[name], 'slide')})" for name, words in _LABELS.items() if sources[name]]
    text = f"Labels come from {_listed(kinds)}. " if kinds else ""
    if sources["markers"] or sources["given_then_markers"]:
        rule = {"calibrated": "calibrated confidence"}.get(settings["confidence"], "confidence by the original's rule")
        text += f"Labels by marker genes are kept from a {rule} of {settings['min_confidence']} on. "
    if sources["given"] or sources["given_then_markers"] or sources[PATCHES]:
        text += "Labels that were given are kept where the ontology knows their name; no confidence is asked of them. "
    cells, good = int(quality["cells"].sum()), int(quality["with_class"].sum())
    none, dropped = int(quality["abstained"].sum()), int(quality["dropped"].sum())
    text += (
        f"Of {_number(cells, 'cell')} {good:,} {_several(good, 'has', 'have')} a label with a class of the study "
        f"({100 * good / max(cells, 1):.1f} %) and {none:,} {_several(none, 'stays', 'stay')} without a label"
    )
    # Cells of patch files are taken as they come.
    if sources.total() == sources[PATCHES]:
        return text + "."
    return text + f"; {dropped:,} {_several(dropped, 'fails', 'fail')} quality control."


def _splits(config: Mapping[str, Any], reports: Sequence[Mapping[str, Any]], counts: pd.DataFrame, on: Protocol) -> str:
    layouts, settings = Counter(report["layout"] for report in reports), config["splits"]
    told = [f"{n} {_several(n, 'is', 'are')} {words}" for name, words in _LAYOUTS.items() if (n := layouts[name])]
    text = f"Of the training slides {_listed(told)}. " if told else ""
    cut = layouts["bands"] + layouts["blocks"]
    if cut and settings.get("folds"):
        text += f"Of {settings['folds']} folds fold {settings['fold']} is validation. "
    training = counts[counts["role"] == "train"].groupby("split")["cells"].sum()
    cells = {name: int(training.get(name, 0)) for name in (TRAIN, VAL, TEST, BUFFER)}
    text += f"{_number(cells[TRAIN], 'labelled cell')} train, {cells[VAL]:,} validation"
    text += f", {cells[TEST]:,} test. " if cells[TEST] else ". "
    verb = _several(cells[BUFFER], "is", "are")
    if on.no_buffer:
        text += "By the protocol (no_buffer) no buffer is between them: their windows can share pixels."
        if cells[BUFFER]:
            text += f" {_number(cells[BUFFER], 'cell')} without a split {verb} used by none."
    else:
        width = f" of {settings['buffer_um']:g} um" if cut else ""
        text += f"{_number(cells[BUFFER], 'cell')} in a buffer{width} between them {verb} used by none."
        if layouts["given"]:
            text += " Where the split was given, training cells whose window touches one of validation are buffer."
    if on.test_as_val:
        text += " By the protocol (test_as_val) test cells choose the models where a slide has some, else validation."
    return text


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
        f"AdamW, {rates}, weight decay {told['weight_decay']:g}, batches of {_number(batch, 'cell')}, at most "
        f"{_number(run['max_epochs'], 'epoch')}, patience {run['patience']}. It trained "
        f"{_number(found['epochs'], 'epoch')} on {_number(found['n_train'], 'cell')} and has "
        f"{found['parameters']:,} parameters; temperature {found['temperature']:.3f}."
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
        f"projected to {section['model']['project']}.{_pretrained(models['context'])} "
        f"In the guided loss a cell has the weight "
        f"({doubt})^{loss['gamma']:g}. " + _fit(section, found)
    )


def _pretrained(context: Mapping[str, Any]) -> str:
    """Return how the context network came to its weights, where the study made them itself."""
    settings = context.get("pretrain")
    if not settings:
        return ""
    radii = _listed([f"{radius:g}" for radius in settings["radii_um"]])
    return (
        " Before it was frozen that network was trained by this study: from the global windows of training cells it "
        f"learned to tell the mixture of classes, by the labels of training cells, within {radii} um around the cell "
        "and place by place; validation cells chose its state. So its features know of labels, as those of a "
        "network from elsewhere do not."
    )


def _gate(section: Mapping[str, Any], found: Mapping[str, Any], protocol: Protocol) -> str:
    layers = " and ".join(map(str, section["model"]["hidden"])) or "no"
    project = section["model"]["project"]
    seen = f"the features of both models (projected to {project}) and " if project else ""
    fitted, others = _number(found["n_fit"], "cell"), f"{found['n_select']:,}"
    if protocol.gate_on_train:
        cells = (
            f"By the protocol (gate_on_train) it was fitted to {fitted} that both models had been trained on, and "
            f"stopped by {others} of validation"
        )
    else:
        cells = f"It was fitted to {fitted} of validation and stopped by {others} others"
    return (
        f"A network with hidden layers of {layers} units sees {seen}eight statistics of both sets of probabilities, "
        f"and gives the weight of the global model in each cell. {cells}, {_number(found['epochs'], 'epoch')}; "
        f"temperature {found['temperature']:.3f}."
        + " By the protocol (smaller_gate_context) it sees context three quarters the size."
        * protocol.smaller_gate_context
    )


def _evaluation(config: Mapping[str, Any], counts: pd.DataFrame, protocol: Protocol) -> str:
    settings, cohorts = config["evaluation"], counts[(counts["role"] == "cohort") & (counts["split"] == TEST)]
    cells = int(cohorts["cells"].sum())
    flawed = "".join(
        f" By the protocol ({name}) {text}." for name, text in _REPORTED.items() if getattr(protocol, name)
    )
    return (
        f"{_number(cells, 'labelled cell')} of {_number(cohorts['slide'].nunique(), 'cohort')}, of patients that no "
        f"training slide is of, by the sheet of slides, {_several(cells, 'is', 'are')} reported on and chose no model."
        f"{flawed} Intervals: 95 %, {settings['bootstrap']:,} bootstrap samples of blocks of "
        f"{settings['block_um']:g} um. A class counts in macro averages with "
        f"{_number(settings['min_support'], 'cell')} or more."
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


def _versions(checkpoints: Mapping[str, Mapping[str, str]], packages: Mapping[str, str | None]) -> str:
    """Return the versions that trained, as the checkpoints tell them, and those of the page's own environment."""
    names = list(dict.fromkeys(name for versions in checkpoints.values() for name in versions))
    rows = [(model, *(versions.get(name, "") for name in names)) for model, versions in checkpoints.items()]
    text = "<p>Trained with, as the checkpoints say:</p>" + _table(("Model", *names), rows) if names else ""
    own = [(name, version) for name, version in packages.items() if version]
    where = "In the environment that wrote this page; other stages may run in others (envs/):"
    return f"{text}<p>{where}</p>{_table(('Package', 'Version'), own)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["", *[' class="n"'] * (len(head) - 1)]
    first = "".join(f"<th{mark}>{escape(text)}</th>" for mark, text in zip(marks, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{mark}>{escape(text)}</td>" for mark, text in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{first}</tr>{body}</table>"
