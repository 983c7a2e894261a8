"""Joint fine-tuning: the heads of both models learn together with the gate, on cached features.

The original means to do this, but its optimizer never holds the heads. Here they are copies that belong to the fused
model; the local and the global model stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.core.log import get_logger
from nuclass.core.protocol import Protocol
from nuclass.models.gate import FusedModel, GateModel
from nuclass.models.losses import fit_temperature
from nuclass.training.config import Gate
from nuclass.training.gate_module import Fused, GateModule, GateOutputs
from nuclass.training.optim import make_optimizer
from nuclass.training.restore import gate_options

if TYPE_CHECKING:
    from nuclass.training.branches import Branches

_log = get_logger(__name__)
GATE_ALONE, JOINT, REFITTED = "gate alone", "joint", "joint, temperatures refitted"


class JointModule(GateModule):
    """The gate's loss with heads that learn too, and the heads' own cross-entropy as a fifth term.

    Parameters
    ----------
    temperatures
        Of the local and the global model, by which the gate's probabilities are calibrated; they stay fixed.

    Batches hold ``features_a``, ``local_b``, ``context`` and ``label``; see :class:`GateModule` for the rest.
    Under ``protocol.frozen_heads`` the heads are in training mode, with dropout, but do not learn, as in the original.
    """

    model: FusedModel

    def __init__(
        self,
        model: FusedModel,
        settings: Gate,
        seed: int,
        *,
        temperatures: tuple[float, float],
        pos_weight: float,
        protocol: Protocol | None = None,
    ) -> None:
        super().__init__(model, settings, seed, pos_weight=pos_weight, protocol=protocol)
        self.temperatures = temperatures
        if self.protocol.frozen_heads:
            for part in (model.heads_a, model.heads_b):
                part.requires_grad_(False)

    def outputs(self, batch: dict[str, Tensor]) -> GateOutputs:
        """Return the gate's logits, and what the heads give now."""
        features_a, local_b, context = (batch[name].float() for name in ("features_a", "local_b", "context"))
        features_b, logits_a, logits_b = self.model.branches(features_a, local_b, context)
        p_a, p_b = (z / t for z, t in zip((logits_a, logits_b), self.temperatures, strict=True))
        p_a, p_b = p_a.softmax(1), p_b.softmax(1)
        logits = self.model(features_a, features_b, p_a, p_b)
        return GateOutputs(logits, p_a, p_b, None if self.protocol.frozen_heads else (logits_a, logits_b))

    def configure_optimizers(self) -> Any:
        """Return AdamW: heads and gate at their own rates, no decay on norms and biases, no warm-up."""
        joint, named = self.settings.joint, list(self.model.named_parameters())
        heads = [(name, p) for name, p in named if name.startswith("heads_")]
        rest = [(name, p) for name, p in named if not name.startswith("heads_")]
        groups = self.groups(heads, joint.lr_heads, joint.weight_decay)
        return make_optimizer(groups + self.groups(rest, joint.lr_gate, joint.weight_decay))

    @torch.inference_mode()
    def refitted(self, part: dict[str, Tensor]) -> tuple[float, float]:
        """Return the temperatures of the heads as they are now, fitted on a part."""
        self.eval()
        pairs = [
            self.model.branches(*(part[name][i : i + 8192].float() for name in ("features_a", "local_b", "context")))
            for i in range(0, len(part["label"]), 8192)
        ]
        logits_a, logits_b = (torch.cat(column) for column in list(zip(*pairs, strict=True))[1:])
        return fit_temperature(logits_a, part["label"]), fit_temperature(logits_b, part["label"])


@dataclass(frozen=True)
class Chosen:
    """The state that the selecting part chose.

    Attributes
    ----------
    model
        The gate, or the fused model with heads of its own.
    temperatures
        Of the local and the global logits that it weighs.
    fused
        The mixture of the selecting cells.
    report
        Which of the states it is (``state``), and the log loss of each (``log_loss``).
    """

    model: GateModel
    temperatures: tuple[float, float]
    fused: Fused
    report: dict[str, Any]


def joint_module(gate: GateModule, branches: Branches) -> JointModule:
    """Return the module that goes on from a fitted gate with copies of both models' heads."""
    model = FusedModel.from_models(gate.model, branches.model_a, branches.model_b, **gate_options(gate.settings))
    return JointModule(
        model.cpu(),
        gate.settings,
        gate.seed,
        temperatures=branches.temperatures,
        pos_weight=gate.pos_weight,
        protocol=gate.protocol,
    )


def choose(gate: GateModule, joint: JointModule | None, temperatures: tuple[float, float], part: Any) -> Chosen:
    """Choose by the log loss of the mixture on the selecting part: the gate alone, or what joint fine-tuning made.

    After it the temperatures of the heads are fitted anew; this state is tried beside the one with the temperatures
    that it was trained at.
    """
    states: dict[str, tuple[GateModule, tuple[float, float]]] = {GATE_ALONE: (gate, temperatures)}
    if joint is not None:
        states[JOINT] = (joint, temperatures)
        states[REFITTED] = (joint, joint.refitted(part))
    fused: dict[str, Fused] = {}
    for name, (module, pair) in states.items():
        if isinstance(module, JointModule):
            module.temperatures = pair
        fused[name] = module.eval().mixtures(part)
    losses = {name: float(F.nll_loss(found.log_p, part["label"])) for name, found in fused.items()}
    best = min(losses, key=losses.__getitem__)
    if joint is not None:
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        _log.info("joint fine-tuning: log loss on the selecting cells: %s; kept: %s", told, best)
        if best == GATE_ALONE:
            _log.warning("Joint fine-tuning made the mixture no better on the selecting cells: the gate alone is kept")
    return Chosen(states[best][0].model, states[best][1], fused[best], {"state": best, "log_loss": losses})


def joint_section(section: Gate) -> Gate:
    """Return the gate's settings with the length of joint fine-tuning in place of the gate's own."""
    joint = section.joint
    return replace(section, trainer=replace(section.trainer, max_epochs=joint.max_epochs, patience=joint.patience))
