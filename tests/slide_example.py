"""A Xenium output folder with an H&E whose nuclei are those of the bundle, small enough for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from drawn_slide import PIXEL, DrawnSlide
from nuclass.synthetic.bundle import BundleData, cell_ids, control_features, write_bundle


def write_output(folder: Path, drawn: DrawnSlide, name: str = "x", alignment: np.ndarray | None = None) -> Path:
    """Write ``outs/``, ``{name}_he_image.ome.tif`` and, if given, ``{name}_he_imagealignment.csv`` into ``folder``."""
    rng = np.random.default_rng(3)
    low = drawn.nuclei.xy.min(axis=0)
    assert (low >= 0).all(), "the nuclei must lie on the morphology image"
    outlines = drawn.nuclei.xy.reshape(len(drawn.he), -1, 2)
    outlines = np.concatenate([outlines, np.repeat(outlines[:, -1:], 25 - outlines.shape[1], axis=1)], axis=1)
    centre = drawn.nuclei.centre
    cells = centre[:, None] + 1.3 * (outlines - centre[:, None])
    shape = tuple(int(n) for n in np.ceil(drawn.nuclei.xy.max(axis=0)[::-1] / PIXEL) + 20)
    genes = pd.DataFrame({"id": [f"ENSG{i:011d}" for i in range(20)], "name": [f"GENE{i}" for i in range(20)]})
    per_cell = 25
    spot = np.repeat(centre, per_cell, axis=0) + rng.normal(0, 0.6, (len(centre) * per_cell, 2))
    transcripts = pd.DataFrame(
        {
            "x_um": np.clip(spot[:, 0], 0, shape[1] * PIXEL - 0.3),
            "y_um": np.clip(spot[:, 1], 0, shape[0] * PIXEL - 0.3),
            "z_um": 15.0,
            "feature_name": pd.Categorical.from_codes(rng.integers(0, 20, len(spot)), genes["name"]),
            "qv": 40.0,
            "cell": np.repeat(np.arange(len(centre)), per_cell),
        }
    )
    data = BundleData(
        cell_id=cell_ids(len(centre), 1),
        cell_polygons=cells,
        nucleus_polygons=outlines,
        genes=genes,
        transcripts=transcripts,
        controls=control_features(),
        morphology=_dapi(drawn, shape),
        stack=lambda: iter([np.zeros(shape, np.uint16)]),
        n_planes=1,
    )
    write_bundle(folder / "outs", name, data)
    (folder / "outs" / "bundle.json").unlink()
    drawn.write(folder / f"{name}_he_image.ome.tif")
    if alignment is not None:
        np.savetxt(folder / f"{name}_he_imagealignment.csv", alignment, delimiter=",", fmt="%.10f")
    return folder


def _dapi(drawn: DrawnSlide, shape: tuple[int, ...]) -> np.ndarray:
    from skimage.draw import polygon

    image = np.random.default_rng(0).integers(80, 160, shape).astype(np.uint16)
    for vertices in drawn.nuclei.xy.reshape(len(drawn.he), -1, 2) / PIXEL:
        rows, columns = polygon(vertices[:, 1] - 0.5, vertices[:, 0] - 0.5, shape)
        image[rows, columns] = 2500
    return image
