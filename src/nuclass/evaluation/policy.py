"""The original's safety policy: a hard choice of one branch per cell, by reliability, overridden by a sure gate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nuclass.core.errors import UserError

TAUS = tuple(round(0.30 + 0.05 * step, 2) for step in range(9))
GAMMAS = tuple(round(0.02 * step, 2) for step in range(11))
BASE, OVERRIDE = "base", "override"
_EPSILON = 1e-6


@dataclass(frozen=True)
class SafetyPolicy:
    """A tuned policy.

    Attributes
    ----------
    reliability_local, reliability_global
        Precision of a branch where it predicts each class, (C,), on the cells it was tuned on; a class that a
        branch never predicts there has the branch's accuracy, for nothing is known of it.
    tau, gamma
        Thresholds of the gate and of the difference of the branches' confidences; NaN without an override.
    mode
        ``base``: reliability times confidence decides; ``override``: a sure gate decides before it.
    accuracy, accuracy_base, best_single
        On the cells it was tuned on: of the policy, of ``base``, and of the better branch.
    cells
        How many those are.
    """

    reliability_local: np.ndarray
    reliability_global: np.ndarray
    tau: float
    gamma: float
    mode: str
    accuracy: float
    accuracy_base: float
    best_single: float
    cells: int

    def takes_global(self, p_local: np.ndarray, p_global: np.ndarray, gate: np.ndarray) -> np.ndarray:
        """Return for each cell (N,) whether the policy takes the global branch; ``p_*`` are (N, C), ``gate`` (N,)."""
        base = _base(p_local, p_global, self.reliability_local, self.reliability_global)
        if self.mode == BASE:
            return base
        return _overridden(base, _lead(p_local, p_global), np.asarray(gate), self.tau, self.gamma)

    def apply(self, p_local: np.ndarray, p_global: np.ndarray, gate: np.ndarray) -> np.ndarray:
        """Return the probabilities (N, C) of the branch that the policy takes for each cell."""
        return np.where(self.takes_global(p_local, p_global, gate)[:, None], p_global, p_local)

    def to_json(self) -> dict[str, Any]:
        """Return the policy as plain values."""
        return asdict(self)


def fit_policy(y: np.ndarray, p_local: np.ndarray, p_global: np.ndarray, gate: np.ndarray) -> SafetyPolicy:
    """Tune the policy on labelled cells, as the original does.

    Base: global where max p_B (rel_B + 1e-6) > max p_A (rel_A + 1e-6). Override: global where g > tau and
    max p_B - max p_A > gamma; local where g < 1 - tau and max p_B - max p_A < -gamma. The grid is
    :data:`TAUS` times :data:`GAMMAS`; its best point (the first of equals) is taken only where its accuracy is not
    below the better branch's and above that of the base. Source: the released code, ``path_gate.py``.

    Parameters
    ----------
    y
        True classes (N,), indices of columns.
    p_local, p_global
        Probabilities (N, C).
    gate
        Weight of the global branch (N,), between 0 and 1.

    Raises
    ------
    UserError
        Without cells, or where the shapes do not fit each other.
    """
    gate = np.asarray(gate, dtype=np.float64)
    check_branches(y, p_local, p_global, gate)
    call_local, call_global = p_local.argmax(axis=1), p_global.argmax(axis=1)
    right_local, right_global = call_local == y, call_global == y
    n_classes = p_local.shape[1]
    rel_local = _precision(call_local, right_local, n_classes)
    rel_global = _precision(call_global, right_global, n_classes)
    base = _base(p_local, p_global, rel_local, rel_global)

    def accuracy(takes_global: np.ndarray) -> float:
        return float(np.where(takes_global, right_global, right_local).mean())

    lead = _lead(p_local, p_global)
    base_accuracy = accuracy(base)
    best_single = float(max(right_local.mean(), right_global.mean()))
    tau, gamma, best = float("nan"), float("nan"), -1.0
    for one_tau in TAUS:
        for one_gamma in GAMMAS:
            value = accuracy(_overridden(base, lead, gate, one_tau, one_gamma))
            if value > best:
                tau, gamma, best = one_tau, one_gamma, value
    accepted = best >= best_single and best > base_accuracy
    return SafetyPolicy(
        rel_local,
        rel_global,
        tau if accepted else float("nan"),
        gamma if accepted else float("nan"),
        OVERRIDE if accepted else BASE,
        best if accepted else base_accuracy,
        base_accuracy,
        best_single,
        len(y),
    )


def check_branches(y: np.ndarray, p_local: np.ndarray, p_global: np.ndarray, gate: np.ndarray) -> None:
    """Raise where labels (N,), two branches' probabilities (N, C) and gate (N,) do not fit each other."""
    shapes = {"labels": np.shape(y), "local": p_local.shape, "global": p_global.shape, "gate": np.shape(gate)}
    fits = p_local.ndim == 2 and p_local.shape == p_global.shape and np.shape(y) == np.shape(gate) == p_local.shape[:1]
    if not fits or not len(y):
        raise UserError(
            "The branches, the gate and the labels are not of the same cells and classes",
            found=shapes,
            expected="at least one cell; (N,), (N, C), (N, C) and (N,)",
        )


def _precision(call: np.ndarray, right: np.ndarray, n_classes: int) -> np.ndarray:
    called = np.bincount(call, minlength=n_classes)
    hits = np.bincount(call, weights=right, minlength=n_classes)
    return np.where(called > 0, hits / np.maximum(called, 1), right.mean())


def _lead(p_local: np.ndarray, p_global: np.ndarray) -> np.ndarray:
    return np.asarray(p_global.max(axis=1) - p_local.max(axis=1))


def _base(p_local: np.ndarray, p_global: np.ndarray, rel_local: np.ndarray, rel_global: np.ndarray) -> np.ndarray:
    weight_local = rel_local[p_local.argmax(axis=1)] + _EPSILON
    weight_global = rel_global[p_global.argmax(axis=1)] + _EPSILON
    return np.asarray(p_global.max(axis=1) * weight_global > p_local.max(axis=1) * weight_local)


def _overridden(base: np.ndarray, lead: np.ndarray, gate: np.ndarray, tau: float, gamma: float) -> np.ndarray:
    takes = np.where((gate > tau) & (lead > gamma), True, base)
    return np.where((gate < 1 - tau) & (lead < -gamma), False, takes)
