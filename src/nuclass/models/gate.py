"""The gate: a weight in (0, 1) between the local and the global model, cell by cell; and the fused model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nuclass.models.heads import make_head
from nuclass.models.losses import normalised_entropy

if TYPE_CHECKING:
    from nuclass.models.global_ import GlobalModel
    from nuclass.models.local import LocalModel

STATISTICS = ("max_a", "max_b", "entropy_a", "entropy_b", "margin_a", "margin_b", "difference", "abs_difference")


def gate_statistics(p_a: Tensor, p_b: Tensor) -> Tensor:
    """Return the eight statistics (B, 8) of two sets of probabilities (B, C), in the order of ``STATISTICS``.

    Maxima, entropies divided by ln C, margins between the two highest, and the difference of the maxima
    ``d = max p_B - max p_A`` with its absolute value.
    """
    top_a, top_b = p_a.topk(2, 1).values, p_b.topk(2, 1).values
    difference = top_b[:, 0] - top_a[:, 0]
    return torch.stack(
        [
            top_a[:, 0],
            top_b[:, 0],
            normalised_entropy(p_a),
            normalised_entropy(p_b),
            top_a[:, 0] - top_a[:, 1],
            top_b[:, 0] - top_b[:, 1],
            difference,
            difference.abs(),
        ],
        1,
    )


def mix(p_a: Tensor, p_b: Tensor, g: Tensor) -> Tensor:
    """Return ``(1 - g) p_A + g p_B``; probabilities (B, C), ``g`` (B,) the weight of the global model."""
    return (1 - g)[:, None] * p_a + g[:, None] * p_b


def _projection(width: int, project: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, project), nn.SiLU(), nn.Dropout(dropout))


class GateModel(nn.Module):
    """``g = sigmoid(MLP([f_A ; f_B ; 8 statistics]))``.

    Parameters
    ----------
    dim_a, dim_b
        Widths of the local and global models' features.
    project
        Width of each projection; 0 leaves the features out and uses the statistics alone.
    hidden
        Widths of the MLP's hidden layers.
    """

    def __init__(
        self, dim_a: int, dim_b: int, *, project: int = 128, hidden: tuple[int, ...] = (256, 64), dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.project_a = _projection(dim_a, project, dropout) if project else None
        self.project_b = _projection(dim_b, project, dropout) if project else None
        layers: list[nn.Module] = []
        width = 2 * project + len(STATISTICS)
        for size in hidden:
            layers += [nn.Linear(width, size), nn.SiLU(), nn.Dropout(dropout)]
            width = size
        layers.append(nn.Linear(width, 1))
        self.mlp = nn.Sequential(*layers)

    def forward(self, features_a: Tensor, features_b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
        """Return the gate's logits (B,); ``p_a`` and ``p_b`` are calibrated probabilities (B, C)."""
        parts = [gate_statistics(p_a, p_b)]
        if self.project_a is not None and self.project_b is not None:
            parts = [self.project_a(features_a), self.project_b(features_b), *parts]
        return self.mlp(torch.cat(parts, 1))[:, 0]


@dataclass(frozen=True)
class HeadSizes:
    """Widths of the heads that a fused model has of its own.

    Attributes
    ----------
    features_a, hidden_a, hidden_b, n_classes
        What enters the local model's head; hidden layers of both heads; classes.
    local_b, context, project
        The global model's backbone features, the context features, and the width both are projected to.
    dropout_a, dropout_b
        Of the heads in training.
    """

    features_a: int
    hidden_a: int
    local_b: int
    context: int
    project: int
    hidden_b: int
    n_classes: int
    dropout_a: float
    dropout_b: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return asdict(self)


class FusedModel(GateModel):
    """The gate with heads of its own, which joint fine-tuning changes; those of both models stay as they are.

    ``heads_a`` holds the local model's ``head``; ``heads_b`` the global model's ``local_projection``,
    ``context_projection`` and ``head``. The local model's norm and its modulation by the organ, both backbones and
    alpha are not trained.

    Parameters
    ----------
    sizes
        Widths of the heads.
    options
        Those of :class:`GateModel`, without the widths of features.
    """

    alpha: Tensor

    def __init__(self, sizes: HeadSizes, **options: Any) -> None:
        super().__init__(sizes.features_a, 2 * sizes.project, **options)
        self.sizes = sizes
        self.heads_a = nn.ModuleDict(
            {"head": make_head(sizes.features_a, sizes.hidden_a, sizes.n_classes, sizes.dropout_a)}
        )
        self.heads_b = nn.ModuleDict(
            {
                "local_projection": nn.Sequential(nn.LayerNorm(sizes.local_b), nn.Linear(sizes.local_b, sizes.project)),
                "context_projection": nn.Sequential(
                    nn.LayerNorm(sizes.context), nn.Linear(sizes.context, sizes.project)
                ),
                "head": make_head(2 * sizes.project, sizes.hidden_b, sizes.n_classes, sizes.dropout_b),
            }
        )
        self.register_buffer("alpha", torch.ones(()))

    @classmethod
    def from_models(cls, gate: GateModel, local: LocalModel, global_: GlobalModel, **options: Any) -> FusedModel:
        """Return a trained gate with copies of both models' heads; ``options`` are those that made the gate."""
        first_a, _, dropout_a = _parts(local.head)
        first_b, last_b, dropout_b = _parts(global_.head)
        local_b, context = (_parts(part)[0] for part in (global_.local_projection, global_.context_projection))
        sizes = HeadSizes(
            features_a=first_a.in_features,
            hidden_a=first_a.out_features,
            local_b=local_b.in_features,
            context=context.in_features,
            project=local_b.out_features,
            hidden_b=first_b.out_features,
            n_classes=last_b.out_features,
            dropout_a=dropout_a,
            dropout_b=dropout_b,
        )
        model = cls(sizes, **options)
        model.load_state_dict(model.state_dict() | dict(gate.state_dict()))
        model.heads_a["head"].load_state_dict(local.head.state_dict())
        for name, part in model.heads_b.items():
            part.load_state_dict(getattr(global_, name).state_dict())
        model.alpha.copy_(global_.alpha)
        return model

    def branches(self, features_a: Tensor, local_b: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the global features (B, 2P) and both logits (B, C) of these heads.

        Parameters
        ----------
        features_a
            What enters the local model's head, (B, DA).
        local_b
            Features of the global model's own backbone, (B, D).
        context
            Context features, (B, K).
        """
        u = self.heads_b["local_projection"](local_b)
        c = self.heads_b["context_projection"](context)
        features_b = torch.cat([u, self.alpha * c], 1)
        return features_b, self.heads_a["head"](features_a), self.heads_b["head"](features_b)


def _parts(module: nn.Module) -> tuple[nn.Linear, nn.Linear, float]:
    """Return the first and the last linear layer of a head, and its dropout probability."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    dropout = next((layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)), 0.0)
    return layers[0], layers[-1], dropout
