"""Colours of classes, organs and branches stay apart in normal sight and for people who see no red or no green.

Distances are CIEDE2000 (Sharma, Wu and Dalal, 2005) as scikit-image computes them. Sight without one kind of cone is
simulated after Machado, Oliveira and Fernandes (2009), severity 1, in linear RGB. Differences below about 2 are hardly
seen, those below about 5 side by side alone. Sixteen classes cannot all be far apart: the limits below are what the
palette reaches, and where small points carry the colours, figures have names, counts or labels as well.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from nuclass.core.names import ORGANS
from nuclass.figures.labelling_panels import ABSTAINED_COLOUR
from nuclass.figures.points import organ_colours, slide_colours
from nuclass.figures.style import BRANCH_COLOURS, BRANCH_MARKERS, Classes

SHEET = Path(__file__).parents[1] / "resources" / "classes.tsv"
MACHADO = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
SIGHTS = ("normal", *MACHADO)
LIMITS = {"normal": 19.5, "protanopia": 11.5, "deuteranopia": 11.5}
ORGAN_LIMITS = dict.fromkeys(SIGHTS, 13.5)


def seen(colour: str, sight: str) -> np.ndarray:
    """Return a colour in CIELAB as it is seen."""
    rgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    if sight in MACHADO:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        changed = np.clip(np.array(MACHADO[sight]) @ linear, 0, 1)
        rgb = np.where(changed <= 0.0031308, 12.92 * changed, 1.055 * changed ** (1 / 2.4) - 0.055)
    return np.asarray(rgb2lab(rgb))


def distances(colours: dict[str, str], sight: str) -> dict[tuple[str, str], float]:
    lab = {name: seen(colour, sight) for name, colour in colours.items()}
    return {(a, b): float(deltaE_ciede2000(lab[a], lab[b])) for a, b in combinations(lab, 2)}


def classes() -> dict[str, str]:
    return Classes.read(SHEET).table["colour"].to_dict()


def test_the_simulation_is_the_published_one() -> None:
    """Grey stays grey, and what such an eye confounds comes close: a red and a green of one lightness for it."""
    for sight, matrix in MACHADO.items():
        assert np.abs(np.sum(matrix, axis=1) - 1).max() < 1e-5, sight
        assert deltaE_ciede2000(seen("#808080", sight), seen("#808080", "normal")) < 0.1
    far = distances({"red": "#B8433F", "green": "#5E7A33"}, "normal")["red", "green"]
    near = distances({"red": "#B8433F", "green": "#5E7A33"}, "deuteranopia")["red", "green"]
    assert near < 0.4 * far


@pytest.mark.parametrize("sight", SIGHTS)
def test_classes_are_apart(sight: str) -> None:
    found = distances(classes(), sight)
    assert len(found) == 120
    nearest = min(found, key=found.__getitem__)
    assert found[nearest] >= LIMITS[sight], (nearest, found[nearest])


@pytest.mark.parametrize("sight", SIGHTS)
def test_classes_are_apart_from_paper_and_from_cells_without_a_label(sight: str) -> None:
    for other in ("#FFFFFF", ABSTAINED_COLOUR):
        for name, colour in classes().items():
            assert deltaE_ciede2000(seen(colour, sight), seen(other, sight)) > 9, (name, other)


@pytest.mark.parametrize("sight", SIGHTS)
def test_organs_are_apart_and_duller_than_classes(sight: str) -> None:
    organs = organ_colours(ORGANS)
    found = distances(organs, sight)
    assert min(found.values()) >= ORGAN_LIMITS[sight], min(found, key=found.__getitem__)
    assert set(slide_colours([f"s{i}" for i in range(len(ORGANS))]).values()) == set(organs.values())
    chroma = {name: float(np.hypot(*seen(colour, "normal")[1:])) for name, colour in (organs | classes()).items()}
    vivid = min(chroma[name] for name in classes() if name != "Epithelial_Malignant")
    assert max(chroma[name] for name in organs) < 20 < vivid


@pytest.mark.parametrize("sight", SIGHTS)
def test_branches_are_apart(sight: str) -> None:
    """Each has a marker of its own as well."""
    assert min(distances(BRANCH_COLOURS, sight).values()) > 8
    assert len({(BRANCH_MARKERS[name], name == "mean") for name in BRANCH_COLOURS}) >= 5


def test_classes_of_a_group_are_of_a_hue_and_differ_in_lightness() -> None:
    sheet = Classes.read(SHEET).table
    for group in ("vessel", "stroma"):
        lab = [seen(colour, "normal") for colour in sheet.loc[sheet["group"] == group, "colour"]]
        hues = [np.degrees(np.arctan2(b, a)) % 360 for _, a, b in lab]
        assert np.ptp(hues) < 60, group
        light = sorted(value[0] for value in lab)
        assert np.diff(light).min() > 8, group
