"""Tables and slide stores of two small slides, for the tests of the data package."""

from __future__ import annotations

import numpy as np
import pandas as pd
import tifffile

from nuclass.core.files import write_parquet
from nuclass.slides.geometry import Frames
from nuclass.slides.writer import write_store

SLIDES = [{"slide": "lung_1", "organ": "lung", "role": "train"}, {"slide": "colon_1", "organ": "colon"}]
SIDE = 600


def write_tables(root):
    """Write tables of two slides of 40 cells: 4 dropped, 6 abstained; the label and split tables in other orders."""
    rng = np.random.default_rng(0)
    for item in SLIDES:
        slide = item["slide"]
        ids = [f"{slide[0]}{i:03d}-1" for i in range(40)]
        status = np.array(["dropped"] * 4 + ["abstained"] * 6 + ["labelled"] * 30)
        reason = np.array(["low_counts"] * 3 + ["off_slide"] + ["margin"] * 6 + [""] * 30)
        place = rng.uniform(0, SIDE, (40, 2))
        cells = pd.DataFrame({"cell_id": ids, "x_px": place[:, 0], "y_px": place[:, 1]})
        cells["status"] = np.where(status == "dropped", "dropped", "kept")
        cells["reason"] = np.where(status == "dropped", reason, "")
        names = np.where(status == "labelled", np.resize(["T_Cell", "B_Cell", "Ductal"], 40), "")
        labels = pd.DataFrame({"cell_id": ids, "class": names, "status": status, "reason": reason})
        split = pd.DataFrame({"cell_id": ids, "split": np.resize(["train", "train", "val", "buffer", "test"], 40)})
        write_parquet(root / "slides" / slide / "cells.parquet", cells)
        write_parquet(root / "labels" / slide / "labels.parquet", labels.sample(frac=1, random_state=1))
        write_parquet(root / "splits" / f"{slide}.parquet", split.sample(frac=1, random_state=2))
    return root


def write_stores(root):
    """Write two slide stores of random pixels; return their paths and the pixels."""
    paths, pixels = {}, {}
    for number, item in enumerate(SLIDES):
        slide = item["slide"]
        image = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        tifffile.imwrite(root / f"{slide}.ome.tif", image, tile=(128, 128), photometric="rgb")
        frames = Frames(np.diag([1.25, 1.25, 1.0]), 0.2, 0.25)
        write_store(root / f"{slide}.ome.tif", frames, root / slide, tile=64, shard=256, levels=3)
        paths[slide], pixels[slide] = root / slide, image
    return paths, pixels


def change(path, edit):
    """Edit a table in place."""
    write_parquet(path, edit(pd.read_parquet(path)))
