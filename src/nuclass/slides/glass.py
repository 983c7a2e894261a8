"""Which part of a slide is empty glass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DARKER, _PINK, _BRIGHT = 0.06, 0.04, 0.75


def glass(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where ``(H, W, 3)`` pixels are empty glass: near the colour of the brightest places, and not pink.

    The light may be yellowish, bluish or grey. Tissue is pink to violet: green is its darkest colour. Doubtful places
    count as tissue, so that nothing is called glass for a pale stain or an uneven light.
    """
    values = image.astype(np.float32) / 255
    darkest = values.min(axis=-1)
    bright = float(np.percentile(darkest, 95))
    light = np.median(values[darkest >= bright], axis=0)
    pink = np.minimum(values[..., 0], values[..., 2]) - values[..., 1]
    like_light = (values > light - _DARKER).all(axis=-1)
    # Where no glass is in the picture the brightest places are tissue, and none of it is that white.
    return like_light & (pink < _PINK) & (float(light.mean()) > _BRIGHT)
