"""The verdict on an alignment: measured on the picture, judged by limits, with the reasons in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.slides.evidence import Block, Nuclei, Peak, find_peak, measure_blocks, pooled
from nuclass.slides.geometry import MAX_ANISOTROPY, Frames
from nuclass.slides.glass import glass
from nuclass.slides.register import BLOCK_CLEAR, view_of
from nuclass.slides.source import Source

Floats = NDArray[np.float64]

PASS, WARN, FAIL = "pass", "warn", "fail"
MPP_TOLERANCE = 0.02  # the limit by which the HEST authors' table counts an embedded pixel size as off
FINE_MPP = 0.6
_FEW_NUCLEI = 50
_FEW_BLOCKS = 3
_OVERVIEW_PX = 2048
_NEAR_GLASS_UM = 15.0


@dataclass(frozen=True)
class Limits:
    """What is good and what is not; see the section ``alignment`` of the settings."""

    search_um: float
    block_um: float
    pass_um: float
    fail_um: float
    pass_score: float
    fail_score: float
    region_um: float
    warn_off: float
    fail_off: float

    @classmethod
    def from_config(cls, settings: Mapping[str, Any]) -> Limits:
        """Take the limits from the section ``alignment``."""
        return cls(**{name: float(settings[name]) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Measured:
    """What was measured on one slide.

    Attributes
    ----------
    peak
        Top of the pooled landscape; None where no block holds enough nuclei.
    landscape
        The pooled landscape, (2R+1, 2R+1).
    mpp
        Micrometres per px of the landscape.
    blocks
        One row a block: ``x_he y_he`` the middle of its nuclei; ``n_nuclei``; ``dx_um dy_um`` where its nuclei lie,
        seen from where the cells say, along the H&E's axes; ``score``; ``clear``: whether it has one distinct peak.
    sem_um
        Standard error of the residual, from the scatter of the clear blocks; None below three.
    off_image, off_tissue
        Shares of the nuclei that lie outside the H&E, and on glass (of those inside).
    n_nuclei, n_measured
        Nuclei of the bundle, and those inside the measured blocks.
    """

    peak: Peak | None
    landscape: Floats | None
    mpp: float
    blocks: pd.DataFrame
    sem_um: float | None
    off_image: float
    off_tissue: float
    n_nuclei: int
    n_measured: int

    @property
    def clear_blocks(self) -> pd.DataFrame:
        """The blocks with one distinct peak."""
        return self.blocks[self.blocks["clear"]]

    @property
    def region_median_um(self) -> float | None:
        """Half of the clear blocks have a residual below this."""
        clear = self.clear_blocks
        return float(np.median(np.hypot(clear["dx_um"], clear["dy_um"]))) if len(clear) else None

    @property
    def region_scatter_um(self) -> float:
        """Half of the clear blocks differ from their common shift by more than this; 0 where all have one shift."""
        clear = self.clear_blocks[["dx_um", "dy_um"]].to_numpy(np.float64)
        return float(np.median(np.hypot(*(clear - np.median(clear, axis=0)).T))) if len(clear) else 0.0

    @property
    def mostly_clear(self) -> bool:
        """Whether most of some blocks each have one distinct peak: then the picture is of this section."""
        return len(self.clear_blocks) > max(0.5 * len(self.blocks), _FEW_BLOCKS)

    @property
    def region_p90_um(self) -> float | None:
        """Nine of ten clear blocks have a residual below this."""
        clear = self.clear_blocks
        return float(np.percentile(np.hypot(clear["dx_um"], clear["dy_um"]), 90)) if len(clear) else None


def measure_alignment(source: Source, frames: Frames, nuclei: Nuclei, limits: Limits) -> Measured:
    """Measure how the nuclei of a bundle (``nuclei``, um) lie on its H&E under ``frames``."""
    he = frames.um_to_he(nuclei.centre)
    height, width = source.shape
    inside = ((he >= 0) & (he < (width, height))).all(axis=1)
    view = view_of(source, frames, FINE_MPP)
    placed = nuclei.mapped(lambda xy: frames.um_to_he(xy) / view.factor)
    measured = measure_blocks(placed, view, limits.block_um, limits.search_um)
    landscape = pooled(measured) if measured else None
    blocks = _table(measured, view.mpp, view.factor)
    return Measured(
        peak=find_peak(landscape, view.mpp) if landscape is not None else None,
        landscape=landscape,
        mpp=view.mpp,
        blocks=blocks,
        sem_um=_standard_error(blocks[blocks["clear"]]),
        off_image=float(1 - np.mean(inside)) if len(nuclei) else 1.0,
        off_tissue=_share_on_glass(source, frames, he[inside]),
        n_nuclei=len(nuclei),
        # A nucleus may stand in two overlapping squares.
        n_measured=min(int(blocks["n_nuclei"].sum()), len(nuclei)),
    )


def judge(measured: Measured, frames: Frames, limits: Limits) -> tuple[str, list[str]]:
    """Return pass, warn or fail, and what is not as it should be."""
    failures: list[str] = []
    warnings: list[str] = []
    peak = measured.peak
    found = measured.mostly_clear or (peak is not None and peak.stands_out(limits.fail_score))
    _judge_places(measured, limits, found, failures, warnings)
    if peak is None:
        if measured.off_image < limits.fail_off:
            warnings.append(f"too few nuclei to judge ({measured.n_nuclei}, no block with enough of them)")
    elif not found:
        failures.append(
            f"no place within {limits.search_um:g} um has the bundle's nuclei on nuclei of the picture "
            f"(score {peak.score:.1f}, limit {limits.fail_score:g})"
        )
    else:
        _judge_offset(measured, peak, limits, failures, warnings)
    if frames.anisotropy > MAX_ANISOTROPY:
        warnings.append(f"the alignment stretches one axis by {100 * (frames.anisotropy - 1):.0f} %")
    return (FAIL if failures else WARN if warnings else PASS), failures + warnings


def _judge_places(measured: Measured, limits: Limits, found: bool, failures: list[str], warnings: list[str]) -> None:
    off_image = f"{100 * measured.off_image:.0f} % of the nuclei lie outside the H&E"
    if measured.off_image > limits.fail_off:
        failures.append(f"{off_image} (limit {100 * limits.fail_off:g} %)")
    elif measured.off_image > limits.warn_off:
        warnings.append(f"{off_image} (good is {100 * limits.warn_off:g} %)")
    on_glass = f"{100 * measured.off_tissue:.0f} % of the nuclei lie on empty glass"
    # Pale tissue can look like glass. Where the nuclei are found, it is none.
    if measured.off_tissue > limits.fail_off and not found:
        failures.append(f"{on_glass} (limit {100 * limits.fail_off:g} %)")
    elif measured.off_tissue > limits.warn_off:
        warnings.append(f"{on_glass} (good is {100 * limits.warn_off:g} %)")


def _judge_offset(measured: Measured, peak: Peak, limits: Limits, failures: list[str], warnings: list[str]) -> None:
    median, p90 = measured.region_median_um, measured.region_p90_um
    offset = f"the nuclei lie {peak.distance_um:.1f} um from where the cells say"
    several = measured.mostly_clear and measured.region_scatter_um > limits.fail_um / 2
    if several and median is not None and median > limits.fail_um:
        failures.append(
            f"the nuclei lie off by another shift in each place, in half of the blocks by more than {median:.1f} um "
            f"(limit {limits.fail_um:g} um): the map is turned, of another scale, or the section is warped"
        )
    elif peak.distance_um > limits.fail_um:
        failures.append(f"{offset} (limit {limits.fail_um:g} um)")
    elif peak.distance_um > limits.pass_um:
        warnings.append(f"{offset} (good is {limits.pass_um:g} um)")
    if peak.score < limits.pass_score:
        warnings.append(f"the nuclei hardly stand out (score {peak.score:.1f}, good is {limits.pass_score:g})")
    if measured.n_measured < _FEW_NUCLEI:
        warnings.append(f"only {measured.n_measured} nuclei could be measured")
    if p90 is not None and p90 > limits.region_um and peak.distance_um <= limits.fail_um:
        warnings.append(f"in places the nuclei lie farther off: a tenth of the blocks by more than {p90:.1f} um")
    unclear = len(measured.blocks) - len(measured.clear_blocks)
    if unclear > 0.5 * len(measured.blocks):
        warnings.append(f"in {unclear} of {len(measured.blocks)} blocks the nuclei do not stand out")


def _table(measured: list[Block], mpp: float, factor: float) -> pd.DataFrame:
    rows = []
    for block in measured:
        peak = find_peak(block.landscape, mpp)
        rows.append(
            {
                "x_he": block.centre[0] * factor,
                "y_he": block.centre[1] * factor,
                "n_nuclei": block.n_nuclei,
                "dx_um": peak.x_um,
                "dy_um": peak.y_um,
                "score": peak.score,
                "clear": peak.stands_out(BLOCK_CLEAR),
            }
        )
    columns = ["x_he", "y_he", "n_nuclei", "dx_um", "dy_um", "score", "clear"]
    return pd.DataFrame(rows, columns=columns).astype({"clear": bool, "n_nuclei": "int64"})


def _standard_error(clear: pd.DataFrame) -> float | None:
    """Return the standard error of the mean residual, um: blocks scatter around it."""
    if len(clear) < 3:
        return None
    spread = np.hypot(clear["dx_um"].std(ddof=1), clear["dy_um"].std(ddof=1))
    return float(spread / np.sqrt(len(clear)))


def _share_on_glass(source: Source, frames: Frames, he: Floats) -> float:
    """Return the share of places (N, 2), H&E px, with nothing but glass around them."""
    from scipy.ndimage import binary_dilation

    if not len(he):
        return 0.0
    image, factor = source.overview(_OVERVIEW_PX)
    tissue = ~glass(image)
    reach = max(round(_NEAR_GLASS_UM / (frames.mpp_he * factor)), 1)
    tissue = binary_dilation(tissue, iterations=reach)
    place = np.floor(he / factor).astype(np.int64)
    rows = np.clip(place[:, 1], 0, tissue.shape[0] - 1)
    columns = np.clip(place[:, 0], 0, tissue.shape[1] - 1)
    return float(1 - tissue[rows, columns].mean())
