"""Networks of timm and the image half of open_clip's CoCa, built by name and filled strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nuclass.core.errors import UserError, closest
from nuclass.models.backbones.forms import CocaForm


def check_name(architecture: str) -> None:
    """Raise for a network that timm does not have."""
    import timm

    if not timm.is_model(architecture):
        raise UserError(
            "timm has no network of this name",
            where="backbone.name",
            found=architecture,
            fix=f"choose one of timm.list_models().{closest(architecture, timm.list_models())}",
        )


def timm_network(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """Return a timm network without a classifier, with random weights."""
    import timm

    kwargs = dict(arguments)
    if kwargs.get("mlp_layer") == "SwiGLUPacked":
        kwargs["mlp_layer"] = timm.layers.SwiGLUPacked
    if kwargs.get("act_layer") == "SiLU":
        kwargs["act_layer"] = nn.SiLU
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=0, **kwargs)
    except TypeError as error:
        raise UserError(
            "A timm network does not take these arguments",
            where="backbone.kwargs",
            found=str(error),
            expected=f"arguments of {architecture}",
            fix="correct or remove the argument",
        ) from error


def classifier_names(net: Any) -> tuple[str, ...]:
    """Return patterns of the classifier's tensors in a file of a timm network that still has one."""
    named = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}.*" for name in ((named,) if isinstance(named, str) else named))


def check_side(net: Any, input_px: int, name: str) -> None:
    """Raise where a vision transformer of timm does not take images of this side."""
    embed = getattr(net, "patch_embed", None)
    fixed, patch = _pair(getattr(embed, "img_size", None)), _pair(getattr(embed, "patch_size", None))
    strict = bool(getattr(embed, "strict_img_size", False))
    if fixed is not None and strict and fixed != (input_px, input_px):
        raise UserError(
            "A backbone does not take images of this size",
            where="backbone.input_px",
            found=f"{input_px} px with {name}",
            expected=f"{fixed[0]} px",
            fix=f"set input_px: {fixed[0]}, or kwargs: {{img_size: {input_px}}}",
        )
    if not strict and patch is not None and input_px % patch[0] and not getattr(embed, "dynamic_img_pad", False):
        raise not_a_multiple(input_px, patch[0], name)


def _pair(size: Any) -> tuple[int, int] | None:
    """Return height and width; networks of timm hold them as a pair or, where they are equal, as one number."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def not_a_multiple(input_px: int, multiple: int, name: str) -> UserError:
    """Return the error for an input side that the patches do not fill."""
    near = max(1, round(input_px / multiple)) * multiple
    return UserError(
        "A backbone does not take images of this size",
        where="backbone.input_px",
        found=f"{input_px} px with {name}",
        expected=f"a multiple of {multiple}",
        fix=f"set input_px: {near}",
    )


def coca_tower(arguments: dict[str, Any]) -> nn.Module:
    """Return the image half of a CoCa of open_clip, with random weights."""
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(attentional_pool=True, **arguments)


def coca_form(net: Any) -> CocaForm:
    """Return the form of the image half of a CoCa."""
    width = int(net.conv1.out_channels)
    return CocaForm("tokens", 1, width, int(net.output_dim), "transformer.resblocks", "ln_1")


def blank(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network for a file to fill, on the meta device where everything in it comes from the file.

    Networks that keep tensors of their own beside the weights (tables of positions) are built for real.
    """
    try:
        with torch.device("meta"):
            net = make()
    except (RuntimeError, NotImplementedError):
        return make()
    stored = net.state_dict().keys()
    hidden = any(isinstance(value, Tensor) for module in net.modules() for value in vars(module).values())
    return make() if hidden or any(name not in stored for name, _ in net.named_buffers()) else net
