"""Count the labelled cells by slide, split and class, and describe the labels of each slide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nuclass.core.names import ABSTAINED, CELL_ID, DROPPED, LABELLED


def count_cells(
    labels: Mapping[str, str | Path], splits: Mapping[str, str | Path], slides: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the composition of the study and the quality of its labels.

    Parameters
    ----------
    labels, splits
        Slide to its ``labels.parquet`` and its split table.
    slides
        The slide sheet, indexed by slide, with ``organ`` and ``role``.

    Returns
    -------
    tuple
        Composition: ``slide organ role split class cells``, cells with a class only. Quality: one row a
        slide with ``cells labelled with_class abstained dropped labelled_share clusters classes`` and, of the cells
        with a class, the mean and the lower quartile of ``confidence``.
    """
    composition, quality = [], []
    for slide, path in labels.items():
        table = pd.read_parquet(path)
        split = pd.read_parquet(splits[slide], columns=[CELL_ID, "split"])
        organ, role = str(slides.loc[slide, "organ"]), str(slides.loc[slide, "role"])
        kept = table.loc[(table["status"] == LABELLED) & (table["class"] != "")]
        joined = kept[[CELL_ID, "class"]].merge(split, on=CELL_ID, how="left")
        counts = joined.fillna({"split": "none"}).groupby(["split", "class"], observed=True).size()
        composition.append(
            counts.rename("cells")
            .reset_index()
            .assign(slide=slide, organ=organ, role=role)[["slide", "organ", "role", "split", "class", "cells"]]
        )
        status = table["status"].value_counts()
        # Given labels have none, dropped cells -1.
        clusters = pd.to_numeric(table["cluster"], errors="coerce")
        quality.append(
            {
                "slide": slide,
                "organ": organ,
                "role": role,
                "cells": len(table),
                "labelled": int(status.get(LABELLED, 0)),
                "with_class": len(kept),
                "abstained": int(status.get(ABSTAINED, 0)),
                "dropped": int(status.get(DROPPED, 0)),
                "labelled_share": int(status.get(LABELLED, 0)) / len(table) if len(table) else float("nan"),
                "clusters": int(clusters[clusters >= 0].nunique()),
                "classes": int(kept["class"].nunique()),
                "confidence_mean": float(kept["confidence"].mean()),
                "confidence_q25": float(kept["confidence"].quantile(0.25)),
            }
        )
    return pd.concat(composition, ignore_index=True), pd.DataFrame(quality)
