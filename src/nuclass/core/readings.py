"""How predictions are read, and which rows of a comparison look at no cell; light, for tables and figures."""

from __future__ import annotations

OPEN, CLOSED = "open", "closed"
READINGS = {
    OPEN: "Predictions may fall on any class of the model (open set).",
    CLOSED: "Predictions are forced into the classes that occur among the evaluated cells, and probabilities scaled to "
    "them (closed set): errors into other classes are impossible, which flatters.",
}
"""``closed`` is the original's way."""

MAJORITY, ORGAN_PRIOR = "majority", "organ_prior"
PRIORS = (MAJORITY, ORGAN_PRIOR)
