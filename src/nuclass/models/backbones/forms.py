"""How networks of each library give tokens or maps, and how these become one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nuclass.core.errors import UserError


@dataclass(frozen=True)
class Form:
    """What a kind of network looks like from outside. It holds no weights, so it can be copied and sent.

    Attributes
    ----------
    kind
        ``tokens`` (B, T, D) or ``map`` (B, C, h, w).
    prefix_tokens
        Class and register tokens before the patch tokens; 0 for ``map``.
    token_dim, feature_dim
        Width of a token or place, and of the pooled features.
    blocks
        Name of the list of transformer blocks inside the network; empty where there is none.
    norm
        Name of a block's first norm.
    """

    kind: str
    prefix_tokens: int
    token_dim: int
    feature_dim: int
    blocks: str = ""
    norm: str = ""

    def spatial(self, net: Any, pixels: Tensor) -> Tensor:
        """Return tokens or a map of normalised ``pixels`` (B, 3, S, S)."""
        raise NotImplementedError

    def pool(self, net: Any, spatial: Tensor) -> Tensor:
        """Return features (B, D) of the output of :meth:`spatial`."""
        raise NotImplementedError

    def checkpoint(self, net: Any) -> None:
        """Keep no activations inside the blocks."""
        net.set_grad_checkpointing(True)

    def explained(self, net: Any) -> nn.Module:
        """Return the module whose output an activation map is made of: the last block's first norm."""
        if not self.blocks or not self.norm:
            raise UserError(
                "Activation maps of this backbone are not known",
                where=type(net).__name__,
                expected="a convolutional network or a vision transformer with one list of blocks",
                fix="leave out the Grad-CAM figures, or take another backbone",
            )
        layers: Any = net.get_submodule(self.blocks)
        return layers[-1].get_submodule(self.norm)


@dataclass(frozen=True)
class TimmForm(Form):
    """A network of timm; ``channels_last`` for those whose maps are (B, h, w, C)."""

    channels_last: bool = False

    def spatial(self, net: Any, pixels: Tensor) -> Tensor:
        """Return tokens after the final norm, or the last feature map."""
        features: Tensor = net.forward_features(pixels)
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def pool(self, net: Any, spatial: Tensor) -> Tensor:
        """Return what the network itself would hand to a classifier."""
        features: Tensor = net.forward_head(
            spatial.permute(0, 2, 3, 1) if self.channels_last else spatial, pre_logits=True
        )
        return features

    def explained(self, net: Any) -> nn.Module:
        """Return the last block's first norm, or the last stage of a convolutional network."""
        if self.kind == "map" and not self.channels_last:
            last: nn.Module = net.get_submodule(net.feature_info[-1]["module"])
            return last
        return super().explained(net)


def timm_form(net: Any, input_px: int) -> TimmForm:
    """Return the form of a timm network, learnt from its output for one black image where it is no plain transformer.

    Raises
    ------
    UserError
        The network does not take such images, or gives neither tokens nor one feature map.
    """
    features = int(net.head_hidden_size)
    if hasattr(net, "blocks") and hasattr(net, "num_prefix_tokens"):
        return TimmForm("tokens", int(net.num_prefix_tokens), int(net.embed_dim), features, "blocks", "norm1")
    output = _look_timm(net, input_px)
    width = int(net.num_features)
    if isinstance(output, Tensor) and output.ndim == 4 and width in (output.shape[1], output.shape[3]):
        return TimmForm("map", 0, width, features, channels_last=output.shape[1] != width)
    places = int(output.shape[1]) if isinstance(output, Tensor) and output.ndim == 3 else 0
    for prefix in (0, 1):
        if places and round((places - prefix) ** 0.5) ** 2 == places - prefix:
            return TimmForm("tokens", prefix, int(output.shape[2]), features)
    raise UserError(
        "A timm network gives neither tokens on a square grid nor one feature map",
        where="backbone.name",
        found=f"{type(net).__name__} with {tuple(output.shape) if isinstance(output, Tensor) else 'several outputs'}",
        expected="(B, T, D) or (B, C, h, w)",
        fix="take another network",
    )


@torch.no_grad()
def _look_timm(net: Any, input_px: int) -> Any:
    first = next(net.parameters())
    was_training = net.training
    try:
        return net.eval().forward_features(first.new_zeros(1, 3, input_px, input_px))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            "A timm network does not take images of this size",
            where="backbone.input_px",
            found=f"{input_px} px with {type(net).__name__}: {str(error).splitlines()[0]}",
            expected="a size that the network takes, and three channels",
            fix="check 'input_px' and 'kwargs' of the backbone",
        ) from error
    finally:
        net.train(was_training)


@dataclass(frozen=True)
class HubForm(Form):
    """A vision model of transformers; ``how`` is ``cls``, ``mean`` (of the patches or places) or ``pooler``."""

    how: str = "cls"

    def spatial(self, net: Any, pixels: Tensor) -> Tensor:
        """Return the last hidden state."""
        hidden: Tensor = net(pixel_values=pixels).last_hidden_state
        return hidden

    def pool(self, net: Any, spatial: Tensor) -> Tensor:
        """Return the class token, the mean, or what the model's own pooler makes of the last hidden state."""
        if self.how == "pooler":
            return run_pooler(net, spatial)
        if self.kind == "map":
            return spatial.mean((2, 3))
        return spatial[:, 0] if self.how == "cls" else spatial[:, self.prefix_tokens :].mean(1)

    def checkpoint(self, net: Any) -> None:
        """Keep no activations inside the blocks."""
        if not net.supports_gradient_checkpointing:
            raise UserError(
                "This backbone cannot compute its activations again in the backward pass",
                where="trainer.gradient_checkpointing",
                found=f"true with {type(net).__name__}",
                expected="false",
                fix="turn it off, and lower the batch size if memory is short",
            )
        getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)()


def run_pooler(net: Any, hidden: Tensor) -> Tensor:
    """Return what the pooler of a transformers model makes of its last hidden state.

    Raises
    ------
    UserError
        Where the model has none.
    """
    pooler = getattr(net, "pooler", None) or getattr(net, "head", None)
    if pooler is None:
        raise UserError(
            "This backbone has no pooler",
            where="backbone.pool",
            found=f"pool: pooler with {type(net).__name__}",
            expected="pool: cls or pool: mean",
            fix="change the key 'pool'",
        )
    if isinstance(pooler, nn.AdaptiveAvgPool1d):
        hidden = hidden.transpose(1, 2)
    pooled: Tensor = pooler(hidden)
    return pooled.flatten(1)


@dataclass(frozen=True)
class ClipForm(HubForm):
    """The image half of a CLIP model of transformers. Its feature is the image embedding, not scaled to length 1.

    Tokens are those after the model's last norm, which CLIP itself applies to the class token alone.
    """

    def spatial(self, net: Any, pixels: Tensor) -> Tensor:
        """Return class and patch tokens (B, 1 + P, D), all after the last norm."""
        tower = net.vision_model
        grid = int(tower.config.image_size)
        other = pixels.shape[-1] != grid
        hidden = tower(pixel_values=pixels, interpolate_pos_encoding=other).last_hidden_state
        tokens: Tensor = tower.post_layernorm(hidden)
        return tokens

    def pool(self, net: Any, spatial: Tensor) -> Tensor:
        """Return the projected class token."""
        features: Tensor = net.visual_projection(spatial[:, 0])
        return features


@dataclass(frozen=True)
class CocaForm(Form):
    """The image half of an open_clip CoCa. Its feature is the image embedding, not scaled to length 1.

    Tokens are those that leave the last block, before the pooling by attention, which has its own norm.
    """

    def spatial(self, net: Any, pixels: Tensor) -> Tensor:
        """Return class and patch tokens (B, 1 + P, D)."""
        patches = net.conv1(pixels).flatten(2).transpose(1, 2)
        first = net.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        placed = torch.cat([first, patches], 1) + net.positional_embedding.to(patches.dtype)
        tokens: Tensor = net.transformer(net.ln_pre(placed))
        return tokens

    def pool(self, net: Any, spatial: Tensor) -> Tensor:
        """Return the first query of the pooling by attention, projected."""
        features: Tensor = net.ln_post(net.attn_pool(spatial))[:, 0] @ net.proj
        return features


_BLOCK_LISTS = ("layer", "layers", "encoder.layer", "encoder.layers", "model.layer", "model.layers")


def hub_form(net: Any, input_px: int, how: str) -> HubForm:
    """Return the form of any transformers vision model, learnt from its output for one black image.

    Parameters
    ----------
    how
        ``native`` (the class token, or the mean without one), ``cls``, ``mean`` or ``pooler``.

    Raises
    ------
    UserError
        Where the output has another shape than tokens or a map, or the asked pooling is not there.
    """
    hidden, own = _look(net, input_px)
    if hidden.ndim == 4:
        form = HubForm("map", 0, hidden.shape[1], hidden.shape[1], how="mean" if how == "native" else how)
    else:
        prefix = _prefix(net, hidden, input_px)
        chosen = ("cls" if prefix else "mean") if how == "native" else how
        blocks = next((name for name in _BLOCK_LISTS if _is_list(net, name)), "")
        form = HubForm("tokens", prefix, hidden.shape[2], hidden.shape[2], blocks, _first_norm(net, blocks), chosen)
    if form.how == "cls" and not form.prefix_tokens:
        raise UserError(
            "This backbone has no class token",
            where="backbone.pool",
            found=f"pool: cls with {type(net).__name__}",
            expected="pool: mean or pool: pooler",
            fix="change the key 'pool'",
        )
    if form.how == "pooler":
        _check_pooler(net, form, hidden, own)
    return form


@torch.no_grad()
def _look(net: Any, input_px: int) -> tuple[Tensor, Tensor | None]:
    first = next(net.parameters())
    pixels = torch.zeros(1, 3, input_px, input_px, device=first.device, dtype=first.dtype)
    was_training = net.training
    try:
        output = net.eval()(pixel_values=pixels)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            "A transformers model does not take images of this size",
            where=type(net).__name__,
            found=str(error).splitlines()[0],
            expected="a vision model that takes pixel_values alone",
            fix="check 'input_px' of the backbone and the folder's config.json",
        ) from error
    finally:
        net.train(was_training)
    return output.last_hidden_state, getattr(output, "pooler_output", None)


def _prefix(net: Any, hidden: Tensor, input_px: int) -> int:
    tokens = int(hidden.shape[1])
    patch = getattr(net.config, "patch_size", None)
    places = (input_px // patch) ** 2 if isinstance(patch, int) else 0
    if 0 < places <= tokens <= places + 64:
        return tokens - places
    if round(tokens**0.5) ** 2 == tokens:
        return 0
    raise UserError(
        "The tokens of a transformers model are not a square grid",
        where=type(net).__name__,
        found=f"{tokens} tokens for {input_px} px",
        expected="class and register tokens, then one token a patch",
        fix="take another backbone",
    )


def _is_list(net: Any, name: str) -> bool:
    try:
        return isinstance(net.get_submodule(name), nn.ModuleList)
    except AttributeError:
        return False


def _first_norm(net: Any, blocks: str) -> str:
    if not blocks:
        return ""
    children = net.get_submodule(blocks)[-1].named_children()
    return next((name for name, child in children if "Norm" in type(child).__name__), "")


def _check_pooler(net: Any, form: HubForm, hidden: Tensor, own: Tensor | None) -> None:
    with torch.no_grad():
        made = run_pooler(net.eval(), hidden)
    if own is None or hidden.is_meta or torch.allclose(made, own.flatten(1), rtol=1e-3, atol=1e-5):
        return
    raise UserError(
        "The pooler of this backbone does not work on its last hidden state",
        where="backbone.pool",
        found=f"pool: pooler with {type(net).__name__}",
        expected="pool: cls or pool: mean",
        fix="change the key 'pool'",
    )
