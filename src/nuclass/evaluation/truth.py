"""Score labels, models and geometry against the truth of a synthetic study.

Only a simulation has a truth. Nothing here feeds back into the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, precision_recall_fscore_support

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.names import CELL_ID, GATE, KEPT, LABELLED
from nuclass.evaluation.compare import compare
from nuclass.evaluation.metrics import ece
from nuclass.evaluation.predictions import Predictions, read_models

ALL = "all"


def read_truth(folder: str | Path, slide: str) -> pd.DataFrame:
    """Return the true cells of a slide: ``cell_id class structure x_um y_um x_he y_he`` and flags."""
    path = Path(folder) / slide / "truth.parquet"
    if not path.exists():
        raise UserError(
            "A synthetic slide has no truth to be scored against",
            where=path,
            fix="make the bundle again; scoring against truth is for the synthetic study only",
        )
    table = pd.read_parquet(path)
    table[CELL_ID] = table[CELL_ID].astype(str)
    return table


def score_labels(labels: Mapping[str, str | Path], truth_folder: str | Path) -> dict[str, Any]:
    """Score each slide's labels, and all pooled, against the true classes.

    ``labels`` maps a slide to its ``labels.parquet``. F1 is taken over the cells labelled with a class and the
    classes that occur among them in truth or label; ``kept_share`` is their share of all cells
    of the bundle.
    """
    tables = {}
    for slide, path in labels.items():
        table = pd.read_parquet(path, columns=[CELL_ID, "class", "status"]).astype({CELL_ID: str})
        truth = read_truth(truth_folder, slide)[[CELL_ID, "class"]].rename(columns={"class": "truth"})
        joined = table.merge(truth, on=CELL_ID, how="left", validate="one_to_one")
        if joined["truth"].isna().any():
            raise UserError(
                "Labelled cells are unknown to the truth",
                where=path,
                found=f"{int(joined['truth'].isna().sum())} cells",
                fix="make bundle, truth and labels from the same seed",
            )
        tables[slide] = joined
    pooled = pd.concat(tables.values(), ignore_index=True)
    return {
        ALL: _label_scores(pooled),
        "slides": {slide: _label_scores(table) for slide, table in tables.items()},
    }


def _label_scores(table: pd.DataFrame) -> dict[str, Any]:
    kept = table.loc[(table["status"] == LABELLED) & (table["class"] != "")]
    truth, given = kept["truth"].astype(str), kept["class"].astype(str)
    classes = sorted(set(truth) | set(given))
    if not classes:
        return {"n_cells": len(table), "n_kept": 0, "kept_share": 0.0, "macro_f1": float("nan"), "per_class": {}}
    precision, recall, f1, support = precision_recall_fscore_support(truth, given, labels=classes, zero_division=0)
    return {
        "n_cells": len(table),
        "n_kept": len(kept),
        "kept_share": len(kept) / len(table),
        "accuracy": float((truth == given).mean()),
        "macro_f1": float(f1_score(truth, given, labels=classes, average="macro", zero_division=0)),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(classes, precision, recall, f1, support, strict=True)
        },
    }


def score_models(
    paths: Mapping[str, Mapping[str, str | Path]],
    truth_folder: str | Path,
    *,
    mpp: float,
    block_um: float,
    draws: int,
    seed: int,
    bins: int,
    min_support: int,
) -> dict[str, Any]:
    """Score the models on all cohorts pooled, once against the labels and once against the truth.

    ``paths`` is model -> cohort -> prediction table. ``study.json`` of the truth names groups of classes
    (told apart by the surroundings, by the nucleus, by the organ); the F1 of a group is the mean over
    its classes. Each result has the form of :func:`nuclass.evaluation.compare.compare` plus ``ece``.
    """
    groups: dict[str, list[str]] = read_json(Path(truth_folder) / "study.json")["groups"]
    by_label = read_models({model: list(files.values()) for model, files in paths.items()})
    by_truth = _against_truth(by_label, truth_folder)
    out: dict[str, Any] = {"groups": groups}
    for name, models in (("labels", by_label), ("truth", by_truth)):
        present = {models[GATE].classes[i] for i in np.unique(models[GATE].y)}
        used = {key: [c for c in group if c in present] for key, group in groups.items()}
        out[name] = compare(
            models,
            mpp=mpp,
            block_um=block_um,
            draws=draws,
            seed=seed,
            min_support=min_support,
            groups={key: group for key, group in used.items() if group},
        )
        out[name]["group_classes"] = used
        out[name]["ece"] = {model: ece(found.y, found.probs, bins=bins) for model, found in models.items()}
    return out


def _against_truth(models: Mapping[str, Predictions], truth_folder: str | Path) -> dict[str, Predictions]:
    """Return the same predictions with the true class in the place of the label."""
    first = next(iter(models.values()))
    slides = first.table["slide"].unique()
    truth = pd.concat([read_truth(truth_folder, slide).assign(slide=slide) for slide in slides])
    classes = truth.set_index(["slide", CELL_ID])["class"].astype(str).reindex(first.keys)
    index = {name: i for i, name in enumerate(first.classes)}
    y = classes.map(index).to_numpy(dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(y))
    out = {}
    for model, found in models.items():
        kept = found.take(rows)
        out[model] = Predictions(kept.classes, kept.table, y[rows].astype(np.int64), kept.probs, kept.outside)
    return out


def score_geometry(
    cells: Mapping[str, str | Path],
    alignments: Mapping[str, str | Path],
    truth_folder: str | Path,
    *,
    mpp: float,
    window: int,
) -> dict[str, Any]:
    """Score where the windows lie and at which scale the slides are read.

    ``offset`` is the distance, in pixels of ``mpp``, between the true centre of a nucleus and the position
    in ``cells.parquet``, over kept cells with a nucleus that is not two cells merged into one.
    ``window_offset`` is the distance to the centre of the window as it is cut
    on whole pixels of the slide store. ``scale_error`` is the relative error of the measured mpp of the H&E.
    """
    slides = {
        slide: _slide_geometry(
            pd.read_parquet(path, columns=[CELL_ID, "x_px", "y_px", "status"]).astype({CELL_ID: str}),
            read_truth(truth_folder, slide),
            float(read_json(alignments[slide])["mpp_he"]),
            read_json(Path(truth_folder) / slide / "slide.json"),
            mpp,
            window,
        )
        for slide, path in cells.items()
    }
    return {
        "slides": slides,
        "offset_max_px": max(s["offset_max_px"] for s in slides.values()),
        "window_offset_max_px": max(s["window_offset_max_px"] for s in slides.values()),
        "scale_error_max": max(abs(s["scale_error"]) for s in slides.values()),
    }


def _slide_geometry(
    cells: pd.DataFrame, truth: pd.DataFrame, mpp_he: float, facts: Mapping[str, Any], mpp: float, window: int
) -> dict[str, Any]:
    joined = cells.merge(truth, on=CELL_ID, how="inner")
    usable = joined["status"].eq(KEPT)
    if "has_nucleus" in joined:
        usable &= joined["has_nucleus"].astype(bool)
    if "doublet" in joined:
        usable &= ~joined["doublet"].astype(bool)
    joined = joined[usable]
    true = joined[["x_he", "y_he"]].to_numpy() * (float(facts["mpp_he"]) / mpp)
    found = joined[["x_px", "y_px"]].to_numpy()
    offset = np.hypot(*(found - true).T)
    centre = np.floor(found - window / 2 + 0.5) + window / 2
    window_offset = np.hypot(*(centre - true).T)
    return {
        "cells": len(joined),
        "mirrored": bool(facts.get("mirrored", False)),
        "offset_median_px": float(np.median(offset)),
        "offset_p99_px": float(np.percentile(offset, 99)),
        "offset_max_px": float(offset.max()),
        "window_offset_max_px": float(window_offset.max()),
        "mpp_he": mpp_he,
        "mpp_he_true": float(facts["mpp_he"]),
        "scale_error": mpp_he / float(facts["mpp_he"]) - 1.0,
    }


def criteria(labels: Mapping[str, Any], models: Mapping[str, Any], geometry: Mapping[str, Any]) -> pd.DataFrame:
    """Return what the synthetic study is expected to show, each with its value and a verdict.

    Columns: ``criterion``, ``value``, ``low``, ``high`` (95 % interval where there is one),
    ``threshold`` and ``met``.
    """
    result = models["labels"]
    differences = result["differences"]
    rows: list[dict[str, Any]] = []

    def add(criterion: str, value: float | Mapping[str, float], threshold: str, met: bool) -> None:
        interval = value if isinstance(value, Mapping) else {"value": value, "low": np.nan, "high": np.nan}
        rows.append({"criterion": criterion, **interval, "threshold": threshold, "met": bool(met)})

    def at_least(criterion: str, value: float, threshold: float) -> None:
        add(criterion, value, f">= {threshold:g}", value >= threshold)

    def at_most(criterion: str, value: float, threshold: float) -> None:
        add(criterion, value, f"<= {threshold:g}", value <= threshold)

    at_least("Labels against truth, macro-F1 on kept cells", labels[ALL]["macro_f1"], 0.90)
    at_least("Share of cells kept with a label", labels[ALL]["kept_share"], 0.80)
    for other in ("local", "global"):
        gain = differences[f"fused-{other}"]["macro_f1"]
        add(f"Macro-F1, fused minus {other}", gain, "interval above 0", gain["low"] > 0)
    for other in ("local", "global", "mean"):
        gain = differences[f"fused-{other}"]["log_loss"]
        add(f"Log loss, fused minus {other}", gain, "< 0", gain["value"] < 0)
    for target in ("labels", "truth"):
        _add_groups(add, models[target], target)
    at_least("Gate, AUROC where exactly one branch is right", result["branches"]["gate_auroc"], 0.75)
    at_most("Calibration error of the fused model (ECE, 15 bins)", result["ece"][GATE], 0.05)
    at_most("Nucleus to centre of the window, largest distance (px)", geometry["window_offset_max_px"], 1.0)
    at_most("Scale, largest relative error", geometry["scale_error_max"], 0.001)
    return pd.DataFrame(rows, columns=["criterion", "value", "low", "high", "threshold", "met"])


def _add_groups(add: Any, result: Mapping[str, Any], target: str) -> None:
    groups = result["differences"]["fused-local"]["groups"]
    if "surroundings" in groups:
        gain = groups["surroundings"]
        add(
            f"F1 of classes told apart by the surroundings, fused minus local ({target})",
            gain,
            ">= 0.15",
            gain["value"] >= 0.15,
        )
    if "nucleus" in groups:
        gain = groups["nucleus"]
        add(
            f"F1 of classes told apart by the nucleus, fused minus local ({target})",
            gain,
            "interval reaches 0 or more",
            gain["high"] >= 0,
        )


def score_study(
    *,
    labels: Mapping[str, str | Path],
    predictions: Mapping[str, Mapping[str, str | Path]],
    cells: Mapping[str, str | Path],
    alignments: Mapping[str, str | Path],
    truth_folder: str | Path,
    mpp: float,
    window: int,
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """Score the whole study; return ``labels``, ``models``, ``geometry`` and the table ``criteria``.

    ``evaluation`` is the configuration's section of that name.
    """
    out: dict[str, Any] = {
        "labels": score_labels(labels, truth_folder),
        "models": score_models(
            predictions,
            truth_folder,
            mpp=mpp,
            block_um=evaluation["block_um"],
            draws=evaluation["bootstrap"],
            seed=evaluation["seed"],
            bins=evaluation["ece_bins"],
            min_support=evaluation["min_support"],
        ),
        "geometry": score_geometry(cells, alignments, truth_folder, mpp=mpp, window=window),
    }
    out["criteria"] = criteria(out["labels"], out["models"], out["geometry"])
    return out
