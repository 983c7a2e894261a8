"""The global model (Path B): the local window and features of the 256 um around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nuclass.models.backbones import Backbone
from nuclass.models.heads import make_head
from nuclass.models.local import Output
from nuclass.models.losses import normalised_entropy


class GlobalModel(nn.Module):
    """Two projections, ``u`` of the local window and ``c`` of the context, and a head on ``[u ; alpha c]``.

    ``u = Linear(LN(backbone(window)))``, ``c = Linear(LN(context))``. In training a cell's ``c`` is set to 0 with
    probability ``context_dropout``, drawn cell by cell. ``alpha`` is stored with the weights: a loaded model
    uses the value that training ended with.

    Parameters
    ----------
    backbone
        The model's own local backbone.
    context_dim
        Width of the context features.
    project, hidden, n_classes, dropout
        Width of ``u`` and ``c``, of the head's hidden layer, number of classes, dropout probability.

    Attributes
    ----------
    one_draw_a_batch
        The original's context dropout, for a comparison: one draw for a whole batch, whose context features are
        then 0 before their projection.
    """

    alpha: Tensor
    one_draw_a_batch: bool = False

    def __init__(
        self,
        backbone: Backbone,
        context_dim: int,
        n_classes: int,
        *,
        project: int = 512,
        hidden: int = 1024,
        gate_hidden: int = 256,
        dropout: float = 0.2,
        context_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context_dropout = context_dropout
        self.local_projection = nn.Sequential(
            nn.LayerNorm(backbone.feature_dim), nn.Linear(backbone.feature_dim, project)
        )
        self.context_projection = nn.Sequential(nn.LayerNorm(context_dim), nn.Linear(context_dim, project))
        self.head = make_head(2 * project, hidden, n_classes, dropout)
        self.inner_gate = nn.Sequential(nn.Linear(2 * project + 1, gate_hidden), nn.SiLU(), nn.Linear(gate_hidden, 1))
        self.register_buffer("alpha", torch.ones(()))

    def forward(self, images: Tensor, context: Tensor) -> Output:
        """Classify ``images`` (B, 3, S, S) in [0, 1] with ``context`` features (B, K)."""
        return self.classify(self.backbone(images), context)

    def classify(self, local_features: Tensor, context: Tensor) -> Output:
        """Classify backbone features (B, D) with context features (B, K)."""
        u = self.local_projection(local_features)
        c = self._context(context.float())
        features = torch.cat([u, self.alpha * c], 1)
        return Output(features, self.head(features))

    def _context(self, context: Tensor) -> Tensor:
        """Return ``c`` (B, P), in training with dropout."""
        if not self.training or self.context_dropout <= 0:
            return self.context_projection(context)  # type: ignore[no-any-return]
        draws = 1 if self.one_draw_a_batch else len(context)
        kept = torch.rand(draws, 1, device=context.device) >= self.context_dropout
        if self.one_draw_a_batch:
            return self.context_projection(context * kept)  # type: ignore[no-any-return]
        return self.context_projection(context) * kept  # type: ignore[no-any-return]

    def fuse(self, output: Output, local_logits: Tensor, hint: Tensor | None = None) -> Tensor:
        """Return ``z_A + g z_B``, the training aid of the uncertainty-guided loss.

        ``g`` is the sigmoid of a small network on ``[u ; alpha c ; H(p_A)]``, H the entropy of the local model's
        probabilities divided by ln C. It sees no label.

        Parameters
        ----------
        output
            What the model returned for B cells.
        local_logits
            ``z_A`` (B, C) of the local model.
        hint
            Number a cell (B,) that stands in the place of H, for a comparison with the original.
        """
        if hint is None:
            hint = normalised_entropy(local_logits.softmax(1))
        g = torch.sigmoid(self.inner_gate(torch.cat([output.features, hint[:, None].to(output.features.dtype)], 1)))
        return local_logits + g * output.logits


def alpha_schedule(epoch: float, warmup_epochs: float, start: float = 0.25) -> float:
    """Return the weight of the context in an epoch: ``start + (1 - start) epoch / warmup_epochs``, at most 1.

    Without warm-up (0 epochs) it is 1 from the start.
    """
    if warmup_epochs <= 0:
        return 1.0
    return min(1.0, start + (1.0 - start) * epoch / warmup_epochs)
