"""Hints that a slide is not what a model was trained for: its scale, its stain, its organ, the model's own doubt.

None of them stops a run. Each says what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nuclass.data.stain import STAINS
from nuclass.data.vocabulary import UNKNOWN

if TYPE_CHECKING:
    from nuclass.apply.positions import Outlines

INFO, WARN = "info", "warn"
MPP_APART = 0.1
"""Share by which the given scale may differ from the file's."""
ALIGNED_APART = 0.03
"""Share by which the scale may differ from that of the alignment, which is measured."""
COARSER = 1.25
"""Micrometres per px of the H&E over those of the model, above which the H&E lacks detail."""
MUCH_COARSER = 1.9
NUCLEUS_UM2 = (15.0, 150.0)
"""Plausible median area of nuclei in a section, um2: discs 4.4 to 13.8 um across. QuPath's cell detection looks, as it
comes, for nuclei of 10 to 400 um2; the middle one of many lies well inside. A scale that is wrong by a factor of two
changes areas by four, and mostly leaves this range."""
OFF_SHARE = 0.2
CORNER = 0.5
"""Share of both sides of a slide that its cells must pass; below, and near its corner, their unit may be too small."""
_FROM_CORNER, _ALIKE = 0.35, 1.5
UNSURE_SHARE = 0.5
LESS_SURE = 0.1
"""How far the mean confidence may lie below the share of val cells that the model types right."""
STRONGEST = {"haematoxylin": 1.9705, "eosin": 1.0308}
"""Optical density (natural logarithm) that 99 % of the px of a typical slide stay below: Macenko et al., 2009."""
_FEWEST = 20
_NUCLEI = 100_000


@dataclass(frozen=True)
class Hint:
    """One hint.

    Attributes
    ----------
    kind
        ``organ``, ``scale``, ``positions``, ``stain``, ``confidence`` or ``seen``.
    level
        ``info`` (good to know) or ``warn`` (the result may be wrong).
    text
        What was found.
    fix
        What to do.
    """

    kind: str
    level: str
    text: str
    fix: str

    def to_dict(self) -> dict[str, str]:
        """Return plain values, for JSON."""
        return asdict(self)


def organ_hints(told: str | None, organ: str, organs: Sequence[str], trained_unknown: bool) -> list[Hint]:
    """Return what is to be said of the organ.

    Parameters
    ----------
    told, organ
        What the user said; the model's organ that it was taken as.
    organs
        Those of the model.
    trained_unknown
        Whether the model saw cells without an organ in training.
    """
    if organ != UNKNOWN:
        return []
    known = ", ".join(name for name in organs if name != UNKNOWN)
    level, chance = INFO, ""
    if not trained_unknown:
        level, chance = WARN, " It was trained without unknown organs, so what it does here is left to chance."
    if told is None or told.strip().casefold() in ("", UNKNOWN):
        text = f"No organ was told, so the model types cells without one.{chance}"
        return [Hint("organ", level, text, f"If it is one of {known}, give it by --organ.")]
    text = f"The model never saw the organ '{told}' (it knows {known}) and takes it as unknown.{chance}"
    fix = "Classes that only this organ has are not known: check some cells of each class by eye."
    return [Hint("organ", WARN, text, fix)]


def seen_hints(slide: str, trained_on: set[str]) -> list[Hint]:
    """Return a hint where a slide carries the name of one that the model was trained on."""
    if slide not in trained_on:
        return []
    text = f"The model was trained on a slide called '{slide}'. If it is this one, its predictions flatter."
    return [Hint("seen", WARN, text, "Do not judge the model by them. If it is another slide, name it by --name.")]


def mpp_hints(mpp: float, embedded: float | None, given: bool, mpp_model: float) -> list[Hint]:
    """Return what is to be said of the scale: um per px as used, as the file says, and of the model's windows."""
    hints = []
    if not given:
        text = f"The scale is what the file says, {mpp:.4g} um/px, which is often wrong."
        fix = "Compare it with the scanner's setting (about 0.25 at 40x, 0.5 at 20x), and give --mpp where it differs."
        hints.append(Hint("scale", INFO, text, fix))
    elif embedded is not None and abs(embedded / mpp - 1) > MPP_APART:
        text = f"--mpp says {mpp:.4g} um/px and is used; the file says {embedded:.4g}. One of the two is wrong."
        fix = "Measure something of known size, such as a red blood cell (7 to 8 um)."
        hints.append(Hint("scale", WARN, text, fix))
    if mpp > COARSER * mpp_model:
        text = f"The H&E has {mpp:.4g} um/px, the model looks at {mpp_model:.4g}: detail of nuclei is missing."
        level = WARN if mpp > MUCH_COARSER * mpp_model else INFO
        hints.append(Hint("scale", level, text, "Use the scan at its full resolution if there is one."))
    return hints


def alignment_hints(mpp: float, aligned: float | None) -> list[Hint]:
    """Return a hint where the scale in use is not the one by the alignment of the positions, um per px."""
    if aligned is None or abs(aligned / mpp - 1) <= ALIGNED_APART:
        return []
    text = f"By the alignment a px of the H&E is {aligned:.4g} um, but {mpp:.4g} is used: windows show another size."
    return [Hint("scale", WARN, text, f"Give --mpp {aligned:.4g}, unless the alignment is of another image.")]


def area_hints(outlines: Outlines | None, mpp: float) -> list[Hint]:
    """Return a hint where the median nucleus is too small or too large for the scale."""
    if outlines is None:
        return []
    areas = nucleus_areas(outlines) * mpp**2
    if len(areas) < _FEWEST:
        return []
    median, (low, high) = float(np.median(areas)), NUCLEUS_UM2
    if low <= median <= high:
        return []
    text = f"The median outline has {median:.3g} um2; the median nucleus of a section has {low:g} to {high:g}."
    fix = f"Check --mpp ({mpp:.4g} um/px), the frame of the positions, and that they outline nuclei, not whole cells."
    return [Hint("scale", WARN, text, fix)]


def nucleus_areas(outlines: Outlines) -> NDArray[np.float64]:
    """Return the areas of cells that have an outline, H&E px squared, by the shoelace formula; of many only some."""
    lengths = np.diff(outlines.offsets)
    cells = np.flatnonzero(lengths >= 3)
    cells = cells[:: max(len(cells) // _NUCLEI, 1)]
    if not len(cells):
        return np.empty(0)
    sizes = lengths[cells]
    starts = np.cumsum(sizes) - sizes
    inside = np.arange(int(sizes.sum())) - np.repeat(starts, sizes)
    first = np.repeat(outlines.offsets[cells], sizes)
    corner = outlines.vertices[first]
    x, y = (outlines.vertices[first + inside] - corner).T
    u, v = (outlines.vertices[first + (inside + 1) % np.repeat(sizes, sizes)] - corner).T
    return np.asarray(np.abs(np.add.reduceat(x * v - u * y, starts)) / 2, np.float64)


def place_hints(total: int, off_slide: int) -> list[Hint]:
    """Return a hint where many of the cells lie off the slide."""
    if off_slide <= OFF_SHARE * total:
        return []
    fix = "Check that the positions are of this image, and their frame and scale (--frame)."
    return [Hint("positions", WARN, f"{off_slide} of {total} cells lie off the slide.", fix)]


def corner_hints(xy: NDArray[np.float64], shape: tuple[int, int]) -> list[Hint]:
    """Return a hint where cells lie as those of a whole slide do, but in its upper left corner alone.

    Numbers in too small a unit, such as micrometres taken as px, are drawn together towards that corner, along both
    sides alike. Fields that were chosen elsewhere on a slide are not.

    Parameters
    ----------
    xy
        (N, 2) positions that a file states in the slide's own frame, H&E px.
    shape
        (height, width) of the slide, px.
    """
    if len(xy) < _FEWEST:
        return []
    side = np.array(shape[::-1], np.float64)
    low, high = (np.quantile(xy, share, axis=0) / side for share in (0.01, 0.99))
    alike = high.min() > 0 and high.max() / high.min() < _ALIKE
    if not alike or high.max() >= CORNER or (low > _FROM_CORNER * high).any():
        return []
    (x, y), (width, height) = high * side, side
    text = (
        f"Nearly all cells lie in the upper left corner: up to x {x:.0f} of {width:.0f}, y {y:.0f} of {height:.0f} px."
    )
    fix = "If there is tissue beyond, their unit is another: give it by --frame, such as um or px@0.5."
    return [Hint("positions", WARN, text, fix)]


def stain_hints(found: Mapping[str, Any], training: Mapping[str, Mapping[str, Any]]) -> list[Hint]:
    """Return what is to be said of the stain.

    Parameters
    ----------
    found
        Of this slide, see :func:`nuclass.data.stain.stain_of`.
    training
        Of the training slides, by slide; where there are none, only gross faults are told.

    The mean density of a stain may lie outside the range of the training slides by half of that range, or by a fifth
    of their mean where that is more; what the two stains leave over is near 0, and measured by the mean of eosin.
    """
    if not found.get("windows"):
        text = "No tissue was found around the cells: the windows are white."
        return [Hint("stain", WARN, text, "Check the positions, their frame and the scale.")]
    known = [one for one in training.values() if one.get("windows")]
    if not known:
        return _gross(found)
    told = []
    for stain, name in zip(STAINS, ("haematoxylin", "eosin", "colour that is neither"), strict=True):
        here, means = float(found[stain][0]), [float(one[stain][0]) for one in known]
        low, high = min(means), max(means)
        size = float(np.mean([one[stain if stain != "rest" else "eosin"][0] for one in known]))
        slack = max((high - low) / 2, 0.2 * abs(size))
        if not low - slack <= here <= high + slack:
            told.append(f"{name} {here:.2f} (training slides {low:.2f} to {high:.2f})")
    if not told:
        return []
    text = "The stain differs from that of the training slides, in mean optical density: " + "; ".join(told) + "."
    fix = "Check that it is H&E and that no program changed its colours; check some cells of each class by eye."
    return [Hint("stain", WARN, text, fix)]


def _gross(found: Mapping[str, Any]) -> list[Hint]:
    """Compare with what holds for nearly all px of a typical slide, for want of the training slides."""
    told = []
    for stain, strongest in STRONGEST.items():
        mean, weakest = float(found[stain][0]), 0.02 * strongest
        if not weakest <= mean <= strongest:
            told.append(f"{stain} {mean:.2f} (expected {weakest:.2f} to {strongest:.2f})")
    if told:
        text = "The stain is not that of a usual H&E, in mean optical density: " + "; ".join(told) + "."
        return [Hint("stain", WARN, text, "Check that it is H&E and that no program changed its colours.")]
    text = "The checkpoint does not tell how its training slides are stained, so only gross faults were looked for."
    return [Hint("stain", INFO, text, "Compare the slide with a training slide by eye.")]


def confidence_hints(confidence: NDArray[np.float64], abstained: int, accuracy: float | None) -> list[Hint]:
    """Return what the model's own doubt says.

    Parameters
    ----------
    confidence
        Calibrated, of the predicted cells.
    abstained
        How many of them got no class.
    accuracy
        Share of the model's val cells that it types right, None where that is not known. The mean of calibrated
        confidences is such a share, so that on slides like those of the training the two agree.
    """
    if not len(confidence):
        return []
    mean, share = float(confidence.mean()), abstained / len(confidence)
    less = accuracy is not None and mean < accuracy - LESS_SURE
    if not less and share <= UNSURE_SHARE:
        return []
    text = f"The model is unsure: mean confidence {mean:.2f}, {100 * share:.0f} % of the cells abstained."
    if accuracy is not None:
        text += f" On slides like its training slides the mean would be about {accuracy:.2f}."
    fix = "Look into scale, stain and organ first, see on the map where it is unsure, and read compositions with care."
    return [Hint("confidence", WARN, text, fix)]
