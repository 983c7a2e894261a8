"""How many operations a network takes for one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from nuclass.core.log import get_logger

PUBLISHED = {
    # (name, side of the picture in px): GFLOP of one forward pass, counted by torch; held by a test
    ("uni2-h", 224): 370.94,
    ("dinov3-vitl16", 512): 727.19,
    ("dinov3-vitl16", 224): 125.68,
    ("plip", 224): 8.82,
    ("loki", 224): 163.64,
    ("musk", 384): 382.13,
}
SIDES = {"uni2-h": 224, "dinov3-vitl16": 512, "plip": 224, "loki": 224, "musk": 384}
UNKNOWN = 0.1
"""GFLOP taken for a network that cannot be counted: about that of the demo's."""
_log = get_logger(__name__)


def gflop(backbone: Mapping[str, Any]) -> float:
    """Return the operations of one forward pass of one picture, in 10^9; a multiplication and an addition are two.

    Those of the published networks are known, others are counted by torch on a network without memory.

    Parameters
    ----------
    backbone
        The section ``backbone`` of the models' settings.
    """
    name = str(backbone.get("name"))
    known = PUBLISHED.get((name, int(backbone.get("input_px") or SIDES.get(name, 0))))
    return known if known is not None else _counted(json.dumps(backbone, sort_keys=True, default=str))


@cache
def _counted(settings: str) -> float:
    backbone = json.loads(settings)
    try:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from nuclass.models.backbones import build_backbone

        with torch.device("meta"):
            net = build_backbone(backbone, load_weights=False)
            picture = torch.zeros(1, 3, net.input_px, net.input_px)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(picture)
        return float(counter.get_total_flops()) / 1e9
    except Exception as error:  # noqa: BLE001
        _log.warning(
            "The operations of the network %s cannot be counted and are guessed: %s", backbone.get("name"), error
        )
        return UNKNOWN
