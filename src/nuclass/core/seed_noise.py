"""What the seed of a training changes."""

from __future__ import annotations

import math


def seed_noise(deviation: float, runs: int) -> float:
    """Return by how much two runs that differ in the seed alone differ at the most in 95 of 100 cases.

    The standard deviation times sqrt(2) times the 0.975 quantile of Student's t with ``runs`` - 1 degrees of freedom,
    for the deviation itself is known from so few runs: 4.30 with three seeds, where many would give 1.96. NaN with one.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, runs - 1)) * math.sqrt(2) * deviation if runs > 1 else math.nan
