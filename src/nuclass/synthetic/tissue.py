"""Tissue from which everything else is observed: structures first, then the cells in them.

All lengths are micrometres in the bundle's frame (origin top left, x to the right, y down).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from nuclass.synthetic.classes import LOOKS

TUMOUR_REACH = 90.0
"""Stroma and vessels nearer than this to the edge of a tumour nest are tumour-associated."""

_DOMAIN_PERIOD = 640.0


@dataclass(frozen=True)
class Recipe:
    """What grows in an organ: numbers per square millimetre, or shares."""

    glands: float = 0.0
    gland_class: str = "Ductal"
    acini: float = 0.0
    islets: float = 0.0
    alveoli: float = 0.0
    muscle: float = 0.0


RECIPES: dict[str, Recipe] = {
    "breast": Recipe(muscle=1.6),
    "colon": Recipe(muscle=3.2),
    "lung": Recipe(glands=9.0, gland_class="Epithelial_Airway", alveoli=15.0),
    "ovary": Recipe(muscle=3.2),
    "pancreas": Recipe(glands=9.0, gland_class="Ductal", acini=3.2, islets=3.2),
}


@dataclass
class Tissue:
    """Cells and the empty spaces of one section.

    ``cells`` has the columns class, structure, x, y (nucleus centre), angle (radians, of the long
    axis), a, b (semi-axes) and nest_distance; ``lumens`` is (M, 3): x, y, radius.
    """

    width: float
    height: float
    cells: pd.DataFrame
    lumens: np.ndarray
    nests: np.ndarray


@dataclass
class _Placer:
    """Accept points that keep their distance from the ones before."""

    width: float
    height: float
    rows: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    _grid: dict[tuple[int, int], list[tuple[float, float, float]]] = field(default_factory=dict)
    _cell: float = 14.0
    margin: float = 8.0

    def free(self, x: float, y: float, radius: float) -> bool:
        """Tell whether a disc fits at (x, y)."""
        if not (self.margin <= x < self.width - self.margin and self.margin <= y < self.height - self.margin):
            return False
        i, j = int(x // self._cell), int(y // self._cell)
        for p in range(i - 1, i + 2):
            for q in range(j - 1, j + 2):
                for px, py, pr in self._grid.get((p, q), ()):
                    reach = radius + pr
                    if (px - x) ** 2 + (py - y) ** 2 < reach * reach:
                        return False
        return True

    def place(self, kind: str, structure: str, x: float, y: float, radius: float, angle: float) -> bool:
        """Place a cell if it fits."""
        if not self.free(x, y, radius):
            return False
        self._grid.setdefault((int(x // self._cell), int(y // self._cell)), []).append((x, y, radius))
        self.rows.append((kind, structure, x, y, angle))
        return True


def grow_tissue(organ: str, width: float, height: float, n_cells: int, rng: np.random.Generator) -> Tissue:
    """Grow one section of ``organ`` with about ``n_cells`` cells.

    Tumour and normal domains alternate along the section. Nests lie in the tumour domains; what the
    organ grows lies in the normal ones, with some of it left behind in the tumour.
    """
    recipe = RECIPES[organ]
    area = width * height / 1e6
    domain = _Domain(width, height, rng)
    placer = _Placer(width, height)
    lumens: list[tuple[float, float, float]] = []
    taken: list[tuple[float, float, float]] = []

    nests = _sites(round(14 * area), (32, 50), 55, domain, "tumour", width, height, taken, rng)
    sites: dict[str, list[tuple[float, float, float]]] = {"nest": nests}
    sites["aggregate"] = _sites(round(2.6 * area), (30, 42), 12, domain, "any", width, height, taken, rng)
    sites["islet"] = _sites(round(recipe.islets * area), (30, 40), 14, domain, "normal", width, height, taken, rng)
    sites["acini"] = _sites(round(recipe.acini * area), (42, 55), 10, domain, "mostly", width, height, taken, rng)
    sites["gland"] = _sites(round(recipe.glands * area), (20, 27), 14, domain, "any", width, height, taken, rng)
    sites["alveolus"] = _sites(round(recipe.alveoli * area), (22, 30), 2, domain, "mostly", width, height, taken, rng)
    sites["muscle"] = _sites(round(recipe.muscle * area), (48, 62), 10, domain, "any", width, height, taken, rng)
    sites["vessel"] = _sites(round(26 * area), (7, 13), 12, domain, "any", width, height, taken, rng)

    for x, y, r in sites["nest"]:
        _fill_blob(placer, "nest", {"Epithelial_Malignant": 0.95, "T_Cell": 0.05}, x, y, r, 5.6, rng)
    for x, y, r in sites["aggregate"]:
        _fill_blob(placer, "aggregate", {"T_Cell": 0.52, "B_Cell": 0.48}, x, y, r, 4.3, rng)
    for x, y, r in sites["islet"]:
        _fill_blob(placer, "islet", {"Endocrine": 0.94, "Endothelial": 0.06}, x, y, r, 4.9, rng)
    for x, y, r in sites["acini"]:
        _fill_acini(placer, x, y, r, rng)
    for x, y, r in sites["gland"]:
        _ring(placer, "gland", recipe.gland_class, x, y, r - 5.0, 6.6, radial=True, rng=rng)
        lumens.append((x, y, r - 10.5))
    for x, y, r in sites["alveolus"]:
        _ring(placer, "alveolus", "Epithelial_Alveolar", x, y, r, 12.0, radial=False, rng=rng)
        lumens.append((x, y, r - 4.5))
    for x, y, r in sites["muscle"]:
        _fill_bundle(placer, x, y, r, rng)
    for x, y, r in sites["vessel"]:
        _ring(placer, "vessel", "Endothelial", x, y, r, 9.5, radial=False, rng=rng)
        lumens.append((x, y, r - 2.5))

    nest_array = np.array(nests).reshape(-1, 3)
    lumen_array = np.array(lumens).reshape(-1, 3)
    _fill_stroma(placer, nest_array, lumen_array, n_cells, domain, rng)
    cells = pd.DataFrame(placer.rows, columns=["class", "structure", "x", "y", "angle"])
    _decide_by_surroundings(cells, nest_array)
    _size_nuclei(cells, rng)
    return Tissue(width, height, cells, lumen_array, nest_array)


class _Domain:
    """A smooth field over the section: above 0 tumour grows, below 0 it does not; and fibre angles."""

    def __init__(self, width: float, height: float, rng: np.random.Generator) -> None:
        self._step = 20.0
        shape = (int(height / self._step) + 2, int(width / self._step) + 2)
        noise = gaussian_filter(rng.standard_normal(shape), 4, mode="reflect")
        noise /= noise.std() + 1e-9
        along = np.arange(shape[1]) * self._step / _DOMAIN_PERIOD + rng.random()
        self._field = np.sin(2 * np.pi * along)[None, :] + 0.45 * noise - 0.12
        angle = gaussian_filter(rng.standard_normal(shape), 5, mode="reflect")
        self._angle = np.pi * angle / (angle.std() + 1e-9)

    def _at(self, array: np.ndarray, x: float, y: float) -> float:
        return float(map_coordinates(array, [[y / self._step], [x / self._step]], order=1, mode="nearest")[0])

    def tumour(self, x: float, y: float) -> float:
        """Return the field at a point."""
        return self._at(self._field, x, y)

    def angle(self, x: float, y: float) -> float:
        """Return the direction of the fibres at a point, in radians."""
        return self._at(self._angle, x, y)


def _sites(
    number: int,
    radii: tuple[float, float],
    gap: float,
    domain: _Domain,
    where: str,
    width: float,
    height: float,
    taken: list[tuple[float, float, float]],
    rng: np.random.Generator,
) -> list[tuple[float, float, float]]:
    """Choose ``number`` sites whose discs keep ``gap`` from every disc chosen before (adds to ``taken``)."""
    found: list[tuple[float, float, float]] = []
    for _ in range(60 * number):
        if len(found) == number:
            break
        radius = rng.uniform(*radii)
        x, y = rng.uniform(radius + 6, width - radius - 6), rng.uniform(radius + 6, height - radius - 6)
        tumour = domain.tumour(x, y)
        share_in_tumour = {"tumour": 1.0, "normal": 0.0, "mostly": 0.15, "any": 0.5}[where]
        if where != "any" and rng.random() >= (share_in_tumour if tumour > 0 else 1 - share_in_tumour):
            continue
        if all((x - p) ** 2 + (y - q) ** 2 > (radius + s + gap) ** 2 for p, q, s in taken):
            found.append((x, y, radius))
            taken.append((x, y, radius))
    return found


def _fill_blob(
    placer: _Placer,
    structure: str,
    shares: dict[str, float],
    x: float,
    y: float,
    radius: float,
    spacing: float,
    rng: np.random.Generator,
) -> None:
    """Fill an irregular blob with cells at least ``2 * spacing`` apart."""
    names, weights = list(shares), np.array(list(shares.values()))
    phases = rng.uniform(0, 2 * np.pi, 3)
    for _ in range(int(14 * (radius / spacing) ** 2)):
        theta, rho = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random())
        edge = 1 + 0.13 * sum(np.sin((k + 2) * theta + phases[k]) for k in range(3)) / 1.5
        kind = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        placer.place(
            kind,
            structure,
            x + rho * edge * np.cos(theta),
            y + rho * edge * np.sin(theta),
            spacing,
            rng.uniform(0, np.pi),
        )


def _fill_acini(placer: _Placer, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
    """Fill a lobule with rosettes of acinar cells."""
    for row, v in enumerate(np.arange(-radius, radius, 24.0)):
        for u in np.arange(-radius + 13.0 * (row % 2), radius, 27.0):
            if u * u + v * v > radius * radius:
                continue
            cx, cy, start = x + u + rng.normal(0, 1.2), y + v + rng.normal(0, 1.2), rng.uniform(0, 2 * np.pi)
            for k in range(6):
                theta = start + k * np.pi / 3 + rng.normal(0, 0.08)
                px, py = cx + 9.2 * np.cos(theta), cy + 9.2 * np.sin(theta)
                placer.place("Acinar", "acinus", px, py, 3.6, theta + np.pi / 2)


def _ring(
    placer: _Placer,
    structure: str,
    kind: str,
    x: float,
    y: float,
    radius: float,
    spacing: float,
    *,
    radial: bool,
    rng: np.random.Generator,
) -> None:
    """Line a lumen with cells; nuclei point to the centre (``radial``) or follow the wall."""
    number = max(4, int(2 * np.pi * radius / spacing))
    start = rng.uniform(0, 2 * np.pi)
    for k in range(number):
        theta = start + 2 * np.pi * k / number + rng.normal(0, 0.06)
        rho = radius + rng.normal(0, 0.6)
        angle = theta if radial else theta + np.pi / 2
        placer.place(kind, structure, x + rho * np.cos(theta), y + rho * np.sin(theta), 2.7, angle)


def _fill_bundle(placer: _Placer, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
    """Fill a disc with parallel smooth-muscle cells."""
    direction = rng.uniform(0, np.pi)
    for _ in range(int(0.02 * radius**2)):
        theta, rho = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random())
        px, py = x + rho * np.cos(theta), y + rho * np.sin(theta)
        placer.place("Smooth_Muscle", "muscle", px, py, 5.2, direction + rng.normal(0, 0.12))


def _fill_stroma(
    placer: _Placer,
    nests: np.ndarray,
    lumens: np.ndarray,
    n_cells: int,
    domain: _Domain,
    rng: np.random.Generator,
) -> None:
    """Fill what is left with fibroblasts, scattered immune cells and budding tumour cells."""
    shares = {
        "Fibroblast": 0.66,
        "T_Cell": 0.09,
        "B_Cell": 0.06,
        "Macrophage": 0.10,
        "Mast_Cell": 0.06,
        "Epithelial_Malignant": 0.03,
    }
    names, weights = list(shares), np.array(list(shares.values()))
    for _ in range(30 * n_cells):
        if len(placer.rows) >= n_cells:
            return
        x, y = rng.uniform(0, placer.width), rng.uniform(0, placer.height)
        if _inside(nests, x, y, 4.0) or _inside(lumens, x, y, 3.0):
            continue
        kind = names[int(rng.choice(len(names), p=weights))]
        structure = "stroma"
        if kind == "Epithelial_Malignant":
            if _inside(nests, x, y, TUMOUR_REACH):
                continue
            structure = "bud"
        angle = domain.angle(x, y) + rng.normal(0, 0.25)
        placer.place(kind, structure, x, y, 5.0 if kind == "Fibroblast" else 4.6, angle)


def _inside(discs: np.ndarray, x: float, y: float, margin: float) -> bool:
    if len(discs) == 0:
        return False
    return bool(((discs[:, 0] - x) ** 2 + (discs[:, 1] - y) ** 2 < (discs[:, 2] + margin) ** 2).any())


def _decide_by_surroundings(cells: pd.DataFrame, nests: np.ndarray) -> None:
    """Turn stroma and vessels near a tumour nest into their tumour-associated classes (in place)."""
    if len(nests):
        distance = np.full(len(cells), np.inf)
        xy = cells[["x", "y"]].to_numpy()
        for x, y, r in nests:
            distance = np.minimum(distance, np.hypot(xy[:, 0] - x, xy[:, 1] - y) - r)
        cells["nest_distance"] = distance
    else:
        cells["nest_distance"] = np.inf
    near = cells["nest_distance"] < TUMOUR_REACH
    # A vessel is of one kind: the majority of its ring decides.
    vessel = cells.index[cells["structure"] == "vessel"]
    if len(vessel):
        tree = cKDTree(cells.loc[vessel, ["x", "y"]].to_numpy())
        groups = tree.query_ball_point(cells.loc[vessel, ["x", "y"]].to_numpy(), 30.0)
        votes = near.loc[vessel].to_numpy()
        near.loc[vessel] = np.array([votes[members].mean() > 0.5 for members in groups])
    cells.loc[near & (cells["class"] == "Fibroblast"), "class"] = "Tumor_Associated_Fibroblast"
    cells.loc[near & (cells["class"] == "Endothelial"), "class"] = "Endothelial_TumorAssociated"


def _size_nuclei(cells: pd.DataFrame, rng: np.random.Generator) -> None:
    """Give every nucleus its semi-axes (in place)."""
    spread = np.array([LOOKS[name].variation for name in cells["class"]])
    axes = np.array([LOOKS[name].axes for name in cells["class"]])
    size = np.exp(rng.normal(0, 1, len(cells)) * spread)
    stretch = np.exp(rng.normal(0, 0.06, len(cells)))
    cells["a"] = axes[:, 0] * size * stretch
    cells["b"] = axes[:, 1] * size / stretch
