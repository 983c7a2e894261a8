"""Multinomial logistic regression on the features of many cells, in bounded memory, on a processor or a GPU.

Every step sees all cells (limited-memory BFGS with a line search), so the result is the minimum, as that of
scikit-learn, and no matter of a learning rate; features may lie in a file that is mapped into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nuclass.models.linear import LinearHead

CHUNK = 16_384
_KEPT_STEPS = 10


@dataclass(frozen=True)
class Rows:
    """Cells to fit or to judge a head by.

    Attributes
    ----------
    features
        (N, D), of any floating type, on any device, or mapped from a file.
    label
        (N,) int64.
    organ
        (N,) int64, the unknown organ last; None leaves it out.
    """

    features: Tensor
    label: Tensor
    organ: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)


class Fit(NamedTuple):
    """A fitted head, the value of its objective, its largest gradient, and steps of the fit; whether it converged."""

    head: LinearHead
    objective: float
    gradient: float
    iterations: int
    converged: bool


def moments(features: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (D,) of features (N, D), float64; a column without spread gets 1.

    Two passes, chunk by chunk, divisor N.
    """
    width = features.shape[1]
    total = torch.zeros(width, dtype=torch.double)
    for start in range(0, len(features), chunk):
        total += features[start : start + chunk].double().sum(0).cpu()
    mean = total / len(features)
    squares = torch.zeros(width, dtype=torch.double)
    for start in range(0, len(features), chunk):
        squares += (features[start : start + chunk].double().cpu() - mean).square().sum(0)
    std = (squares / len(features)).sqrt()
    # A constant column differs from its own mean by rounding alone.
    return mean, torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, 1.0)


class Problem:
    """The objective ``sum_i w_i CE_i / sum_i w_i + strength / 2 (|W|^2 + |o|^2)`` and its gradient.

    Parameters
    ----------
    rows
        The cells that are fitted.
    class_weights
        Weight of a cell by its class, (C,).
    n_organs
        Organs, the unknown one last and without an offset; 0 without organs.
    mean, std
        Of the features, (D,).
    device
        Where is computed; double precision.
    """

    def __init__(
        self,
        rows: Rows,
        class_weights: Tensor,
        n_organs: int,
        mean: Tensor,
        std: Tensor,
        device: torch.device,
        chunk: int = CHUNK,
    ) -> None:
        self.rows, self.device, self.chunk = rows, device, chunk
        self.mean, self.std = mean.to(device), std.to(device)
        self.class_weights = class_weights.double().to(device)
        self.width, self.known = rows.features.shape[1], max(n_organs - 1, 0)
        self.n_classes = len(class_weights)
        self.total = float(self.class_weights.cpu()[rows.label.cpu()].sum())
        self.n_organs = n_organs

    def start(self) -> Tensor:
        """Return coefficients of zero, (C, D + organs + 1): features, offsets, bias."""
        return torch.zeros(self.n_classes, self.width + self.known + 1, dtype=torch.double, device=self.device)

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Give standardised features (n, D), labels (n,), and organs as ones and zeros (n, organs) where they count."""
        for start in range(0, len(self.rows), self.chunk):
            part = slice(start, start + self.chunk)
            x = self.rows.features[part].to(self.device).to(torch.double, copy=True).sub_(self.mean).div_(self.std)
            organ = None
            if self.known and self.rows.organ is not None:
                ones = torch.nn.functional.one_hot(self.rows.organ[part].to(self.device), self.n_organs)
                organ = ones[:, : self.known].double()
            yield x, self.rows.label[part].to(self.device), organ

    def value(self, coefficients: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Return the objective and its gradient, by the closed form ``w (softmax(z) - onehot(y)) x^T``."""
        loss = torch.zeros((), dtype=torch.double, device=self.device)
        gradient = torch.zeros_like(coefficients)
        weight, offset, bias = coefficients.split([self.width, self.known, 1], 1)
        for x, label, organ in self._chunks():
            logits = torch.addmm(bias[:, 0], x, weight.T)
            if organ is not None:
                logits += organ @ offset.T
            log_p = logits.log_softmax(1)
            factor, chosen = self.class_weights[label], label[:, None]
            loss -= (factor * log_p.gather(1, chosen)[:, 0]).sum()
            error = log_p.exp().scatter_add_(1, chosen, torch.full_like(log_p[:, :1], -1.0)) * factor[:, None]
            gradient[:, : self.width] += error.T @ x
            gradient[:, -1] += error.sum(0)
            if organ is not None:
                gradient[:, self.width : -1] += error.T @ organ
        penalised = coefficients.clone()
        penalised[:, -1] = 0
        return loss / self.total + strength / 2 * penalised.square().sum(), gradient / self.total + strength * penalised

    def solve(self, strength: float, start: Tensor, max_iterations: int, tolerance: float) -> Fit:
        """Minimise the objective from the coefficients ``start``, which are changed to the solution.

        Parameters
        ----------
        strength
            Of the penalty; that of scikit-learn's ``C`` is ``1 / (C sum_i w_i)``.
        tolerance
            Largest gradient at which the fit ends.
        """
        coefficients = start.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [coefficients],
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            history_size=_KEPT_STEPS,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            with torch.no_grad():
                value, coefficients.grad = self.value(coefficients.detach(), strength)
            return value

        optimizer.step(closure)
        coefficients.requires_grad_(False)
        value, gradient = self.value(coefficients, strength)
        largest = float(gradient.abs().max())
        steps = int(optimizer.state[coefficients]["n_iter"])
        return Fit(self.head(coefficients), float(value), largest, steps, largest <= tolerance)

    def head(self, coefficients: Tensor) -> LinearHead:
        """Return the head of these coefficients, on the CPU."""
        head = LinearHead(self.width, self.n_classes, self.n_organs)
        values = coefficients.cpu().float()
        with torch.no_grad():
            head.mean.copy_(self.mean)
            head.std.copy_(self.std)
            head.weight.copy_(values[:, : self.width])
            head.bias.copy_(values[:, -1])
            if head.offset is not None:
                head.offset[: self.known] = values[:, self.width : -1].T
        return head.eval()


@torch.inference_mode()
def head_outputs(
    head: LinearHead, features: Tensor, organ: Tensor, device: torch.device, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return standardised features (N, D), float16, and logits (N, C), float32, on the CPU."""
    head = head.to(device)
    embedded = torch.empty(features.shape, dtype=torch.half)
    logits = torch.empty(len(features), len(head.bias))
    for start in range(0, len(features), chunk):
        part = slice(start, start + chunk)
        out = head(features[part].to(device), organ[part].to(device))
        embedded[part], logits[part] = out.features.half().cpu(), out.logits.cpu()
    head.cpu()
    return embedded, logits
