"""How strongly a slide is stained: the optical density of each stain, over windows around some of its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.patches.windows import WindowReader

STAINS = ("haematoxylin", "eosin", "rest")
"""The stains of H&E, and what the two leave over; colours as Ruifrok and Johnston (2001) measured them."""
WINDOWS = 128
"""Windows that are looked at, evenly over the cells."""
_STEP = 4
# Pixels that are lighter in every colour are glass (Macenko et al., 2009, who take 0.15 too).
_TISSUE = 0.15


def stain_of(reader: WindowReader, frame: pd.DataFrame, side: int) -> dict[str, Any]:
    """Return how strongly one slide is stained.

    Parameters
    ----------
    reader
        Gives its windows.
    frame
        Some of its cells: slide, x_px, y_px, and row where windows come from patch files.
    side
        Of the windows, px.

    Returns
    -------
    ``windows`` (how many have tissue), and for each of :data:`STAINS` two numbers: the mean over these windows of the
    mean optical density of their tissue, and its standard deviation between them. Densities are natural logarithms.
    """
    chosen = frame.iloc[np.linspace(0, len(frame) - 1, min(WINDOWS, len(frame))).round().astype(np.int64)]
    images = reader.read(chosen, side, 0, side)
    step = _STEP if side >= 16 * _STEP else 1
    means = densities(images[:, ::step, ::step])
    seen = means[~np.isnan(means).any(axis=1)]
    if not len(seen):
        return {"windows": 0, **{name: [0.0, 0.0] for name in STAINS}}
    numbers = zip(STAINS, seen.mean(axis=0).tolist(), seen.std(axis=0).tolist(), strict=True)
    return {"windows": len(seen), **{name: [round(mean, 4), round(spread, 4)] for name, mean, spread in numbers}}


def densities(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean optical density of each stain in the tissue of each image.

    ``OD = ln 256 - ln(I + 1)``, separated by the inverse of the three stains' colours.

    Parameters
    ----------
    images
        RGB, (N, H, W, 3).

    Returns
    -------
    (N, 3), in the order of :data:`STAINS`; NaN for an image without tissue.
    """
    from nuclass.data.image_ops import HED

    table = np.log(256.0) - np.log(np.arange(256) + 1.0)
    od = table[images]
    stains = od @ np.linalg.inv(HED.double().numpy())
    tissue = (od > _TISSUE).any(axis=-1)
    count = tissue.sum(axis=(1, 2))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((stains * tissue[..., None]).sum(axis=(1, 2)) / count, np.float64)
