"""How a slide is cut: the settings that bear on one slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nuclass.core.names import TEST, TRAIN, VAL
from nuclass.core.protocol import parse_protocol
from nuclass.core.schema import raise_faults
from nuclass.core.split_settings import AUTO, split_faults, within_slide


@dataclass(frozen=True)
class SplitConfig:
    """How a slide is cut.

    Parameters
    ----------
    val, test
        Wanted shares of the labelled cells that are used (the buffer not counted). ``test`` 0 for none. Of no
        effect with ``folds``.
    buffer_um
        Cells of two splits lie so far apart in x or in y, micrometres; at least the largest window.
    seed
        Shifts the grid of places that are tried, and chooses among cuts that are about equally good.
    window_px, mpp
        Side of the largest window in store px, and micrometres per store px.
    min_class_cells
        A class with at least so many labelled cells on the slide is to occur in train and in val.
    max_buffer_share
        The buffer may take at most this share of the slide's length (bands) or labelled cells (blocks).
    no_buffer
        A flaw of the released protocol: a central box without a buffer, for comparison only. The original
        calls the box test and validates on it, so it is ``val`` here; there is no test band.
    layout
        ``bands``, ``blocks``, or ``auto``: blocks where the slide is large enough.
    block_um
        Side of a block in micrometres.
    folds, fold
        Parts the slide is dealt into, 0 for none, and the part (from 1) that is ``val``; the rest is ``train``.

    Raises
    ------
    UserError
        With every fault of these numbers.
    """

    val: float = 0.2
    test: float = 0.1
    buffer_um: float = 256.0
    seed: int = 42
    window_px: int = 1024
    mpp: float = 0.25
    min_class_cells: int = 20
    max_buffer_share: float = 0.5
    no_buffer: bool = False
    layout: str = AUTO
    block_um: float = 1500.0
    folds: int = 0
    fold: int = 1

    def __post_init__(self) -> None:
        faults = split_faults(
            asdict(self), self.window_um, self.mpp, lambda key: "config, " + ": ".join(key), self.no_buffer
        )
        raise_faults(faults, "The slide cannot be cut by these settings")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SplitConfig:
        """Read the keys ``splits``, ``windows``, ``mpp`` and ``protocol`` of the study's configuration."""
        return cls(
            window_px=max(config["windows"].values()),
            mpp=config["mpp"],
            no_buffer=parse_protocol(config.get("protocol")).no_buffer,
            **within_slide(config["splits"]),
        )

    @property
    def window_um(self) -> float:
        """Side of the largest window in micrometres."""
        return self.window_px * self.mpp

    @property
    def gap_px(self) -> float:
        """Least distance of two splits in store px, with one for the rounding of origins."""
        return max(self.buffer_um / self.mpp, float(self.window_px)) + 1.0

    @property
    def block_px(self) -> float:
        """Side of a block in store px."""
        return self.block_um / self.mpp

    @property
    def wanted(self) -> dict[str, float]:
        """Wanted share of each split that is above 0."""
        shares = {TRAIN: 1.0 - self.val - self.test, VAL: self.val, TEST: self.test}
        return {name: share for name, share in shares.items() if share > 0}
