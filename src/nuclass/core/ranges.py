"""Ranges of numbers in settings, written at the type: ``batch_size: Count``, ``dropout: Share``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Finite numbers from ``low`` to ``high``; bounds of ``above`` and ``below`` do not belong to it."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a number lies in the range; ``nan`` and infinity never do."""
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def schema(self) -> dict[str, float]:
        """Return the range in the words of JSON Schema."""
        words = {
            "minimum": self.low,
            "maximum": self.high,
            "exclusiveMinimum": self.above,
            "exclusiveMaximum": self.below,
        }
        return {word: bound for word, bound in words.items() if bound is not None}

    def __str__(self) -> str:
        words = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None) or "any number"


Count = Annotated[int, Range(low=1)]
Whole = Annotated[int, Range(low=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]
PartialShare = Annotated[float, Range(low=0, below=1)]
"""A share that is never the whole, such as of values left out."""
Factor = Annotated[float, Range(above=0, high=1)]
"""What something is multiplied with to become smaller or stay."""
