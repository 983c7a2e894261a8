"""Counts of real gene panels with known cell types, as hard as real data, from hand-written expression profiles.

The profiles stand in `panel_{panel}.tsv`: relative mean expression of each panel gene in each type (0 none, 0.05 trace,
0.2 low, 1 medium, 3 high, 8 very high), and in columns `state_*` what a transient state of a cell adds. The types,
their coarse group, usual depth and share, and the parts of the tissue they live in stand in `panel_types.tsv`. Both
come from general knowledge of single-cell atlases, never from the marker table under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

HERE = Path(__file__).parent
NICHES = ("nest", "rim", "stroma", "lymphoid", "inner", "outer", "vessel", "mural")
SPACING_UM = 10.5
_TYPES = pd.read_csv(HERE / "panel_types.tsv", sep="\t", na_filter=False)
PANELS: tuple[str, ...] = tuple(dict.fromkeys(_TYPES["panel"]))
COARSE: dict[str, str] = dict(zip(_TYPES["type"], _TYPES["coarse"], strict=True))


@dataclass(frozen=True)
class Slide:
    """Counts, the table of cells that the slides stage would write, and the fine type of each cell."""

    counts: anndata.AnnData
    cells: pd.DataFrame
    truth: pd.Series

    @property
    def coarse(self) -> pd.Series:
        return self.truth.map(COARSE)


@dataclass(frozen=True)
class Panel:
    """Genes, profiles (type x gene), states (state x gene), and the table of types in the order of the profiles."""

    genes: list[str]
    profile: np.ndarray
    states: dict[str, np.ndarray]
    types: pd.DataFrame

    def where(self, coarse: str) -> np.ndarray:
        return np.flatnonzero(self.types["coarse"] == coarse)


@cache
def load_panel(name: str) -> Panel:
    table = pd.read_csv(HERE / f"panel_{name}.tsv", sep="\t", index_col="gene")
    types = _TYPES[_TYPES["panel"] == name].set_index("type")
    states = {column.removeprefix("state_"): column for column in table.columns if column.startswith("state_")}
    assert set(table.columns) - set(states.values()) == set(types.index), f"{name}: profiles and types differ"
    return Panel(
        list(table.index),
        table[list(types.index)].to_numpy(float).T,
        {state: table[column].to_numpy(float) for state, column in states.items()},
        types,
    )


def simulate_panel(
    panel: str = "breast", n: int = 5000, seed: int = 0, kind: str = "xenium", spill: float | None = None,
    doublets: float = 0.04, ambient: float | None = None, shares: dict[str, float] | None = None,
    patients: int | None = None, drop_genes: tuple[str, ...] = (),
) -> Slide:  # fmt: skip
    """Draw a slide (`xenium`) or a table of several patients without positions (`scrna`).

    Without a value, `spill` is 0.12 and `ambient` 0 in a slide; in a table there is no spill-over, and ambient RNA
    makes 3-8 % of the counts of a patient. `shares` gives shares by fine type or by coarse group, the same in all
    patients; without it, patients of a table differ, and some lack some types. A slide has 1 patient, a table 8.
    """
    assert kind in ("xenium", "scrna"), kind
    assert n >= 100, "tissue structure needs at least 100 cells"
    rng = np.random.default_rng(seed)
    known = load_panel(panel)
    patients = patients or (1 if kind == "xenium" else 8)
    share = _patient_shares(rng, known, patients, shares, varied=kind == "scrna")
    if kind == "xenium":
        xy, label, patient = _slides(rng, known, n, share)
    else:
        xy, (label, patient) = np.full((n, 2), np.nan), _table(rng, n, share)
    rate = _rates(rng, known, label, patient, kind)
    counts = rng.poisson(_depths(rng, known, label, kind)[:, None] * rate / rate.sum(axis=1, keepdims=True))
    if kind == "xenium":
        counts = _spill(rng, counts, xy, 0.12 if spill is None else spill)
    elif spill:
        raise ValueError("a table without positions has no spill-over")
    counts = counts + _doublets(rng, counts, xy, patient, doublets)
    counts = counts + _ambient(rng, counts, patient, ambient, kind)
    return _slide(known, counts, xy, label, patient, drop_genes)


def _slide(
    known: Panel, counts: np.ndarray, xy: np.ndarray, label: np.ndarray, patient: np.ndarray, drop: tuple[str, ...]
) -> Slide:
    unknown = sorted(set(drop) - set(known.genes))
    assert not unknown, f"drop_genes names genes that are not in the panel: {unknown}"
    kept = [i for i, gene in enumerate(known.genes) if gene not in drop]
    ids = [f"cell{i:06d}" for i in range(len(label))]
    matrix = anndata.AnnData(
        sparse.csr_matrix(counts[:, kept].astype(np.float32)),
        obs=pd.DataFrame({"patient": [f"P{i + 1}" for i in patient]}, index=ids),
        var=pd.DataFrame(index=[known.genes[i] for i in kept]),
    )
    good = (counts[:, kept].sum(axis=1) >= 10) & ((counts[:, kept] > 0).sum(axis=1) >= 5)
    cells = pd.DataFrame({
        "cell_id": ids, "x_um": xy[:, 0], "y_um": xy[:, 1], "status": np.where(good, "kept", "dropped"),
        "reason": np.where(good, "", "low_counts"),
    })  # fmt: skip
    return Slide(matrix, cells, pd.Series(known.types.index.to_numpy()[label], index=ids, name="truth"))


def _patient_shares(
    rng: np.random.Generator, known: Panel, patients: int, shares: dict[str, float] | None, varied: bool
) -> np.ndarray:
    """Give shares (patient x type): the usual ones, one kind of tumour a patient, or those asked for."""
    usual = known.types["share"].to_numpy(float)
    tumours = known.where("malignant")
    chance = usual[tumours] / usual[tumours].sum()
    kinds = np.resize(rng.choice(tumours, len(tumours), replace=False, p=chance), patients)
    share = np.tile(usual, (patients, 1))
    for row, kind in zip(share, kinds, strict=True):
        total = row[tumours].sum()
        row[tumours] = 0.0
        row[kind] = total
    if shares is not None:
        unknown = sorted(set(shares) - set(known.types.index) - set(known.types["coarse"]))
        assert not unknown, f"shares names neither a type nor a coarse group: {unknown}"
        asked = np.zeros_like(share)
        for name, value in shares.items():
            columns = known.types.index.get_indexer([name]) if name in known.types.index else known.where(name)
            inside = share[:, columns] + 1e-12
            asked[:, columns] += value * inside / inside.sum(axis=1, keepdims=True)
        share = asked
    elif varied:
        for row in share:
            row[:] = rng.dirichlet(12.0 * len(row) ** 0.5 * row / row.sum() + 1e-9)
            row[(rng.random(len(row)) < 0.12) & (row < 0.06)] = 0.0
    return share / share.sum(axis=1, keepdims=True)


def _table(rng: np.random.Generator, n: int, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    patient = rng.choice(len(share), n, p=rng.dirichlet(np.full(len(share), 8.0)))
    return _pick(rng, share[patient]), patient


def _pick(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    total = np.cumsum(chance, axis=1)
    return (rng.random(len(chance))[:, None] * total[:, -1:] > total).sum(axis=1)


def _slides(
    rng: np.random.Generator, known: Panel, n: int, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay the sections of the patients side by side."""
    parts, left = [], 0.0
    for i, count in enumerate(np.diff(np.linspace(0, n, len(share) + 1).round().astype(int))):
        xy, niche = _tissue(rng, count, known, share[i])
        weight = known.types[list(NICHES)].to_numpy(float).T[niche] * (share[i] > 0)
        scale = share[i].copy()
        for _ in range(200):
            chance = weight * scale
            chance /= chance.sum(axis=1, keepdims=True)
            scale *= share[i] / np.maximum(chance.mean(axis=0), 1e-12)
        parts.append((xy + np.array([left, 0.0]), _pick(rng, chance), np.full(count, i)))
        left += np.ptp(xy[:, 0]) + 200.0
    xys, labels, patients = zip(*parts, strict=True)
    return np.concatenate(xys), np.concatenate(labels), np.concatenate(patients)


def _tissue(rng: np.random.Generator, n: int, known: Panel, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw positions (n, 2) in µm and the niche of each: nests of tumour with a rim, ducts, vessels, aggregates."""
    columns = int(np.ceil(np.sqrt(n * 1.08)))
    rows = int(np.ceil(n * 1.08 / columns))
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2).astype(float)
    grid[:, 0] += 0.5 * (grid[:, 1] % 2)
    xy = SPACING_UM * (grid[rng.permutation(len(grid))[:n]] + rng.normal(0, 0.2, (n, 2)))
    side = SPACING_UM * max(columns, rows)
    niche = np.full(n, NICHES.index("stroma"))

    def part(coarse: str) -> float:
        return float(share[known.where(coarse)].sum())

    nest = np.zeros(n, dtype=bool)
    if part("malignant") > 0:
        depth = _blobs(rng, xy, max(3, n // 700), side)
        nest = depth <= np.quantile(depth, min(0.95, part("malignant") / 0.88))
        near = cKDTree(xy[nest]).query(xy)[0] < 35.0
        niche[near] = NICHES.index("rim")
        niche[nest] = NICHES.index("nest")
    _discs(rng, xy, niche, nest, part("epithelial") / 0.85, (14.0, 45.0), side, "inner", "outer")
    _discs(rng, xy, niche, nest, 0.6 * (part("B") + 0.4 * part("T")), (30.0, 80.0), side, "lymphoid", "lymphoid")
    _vessels(rng, xy, niche, part("endothelial"), side)
    return xy, niche


def _blobs(rng: np.random.Generator, xy: np.ndarray, count: int, side: float) -> np.ndarray:
    """Give the distance to the nearest of some blobs in units of its radius, with an irregular border."""
    centre, radius = rng.uniform(0, side, (count, 2)), rng.uniform(40, 160, count)
    depth = np.min([np.linalg.norm(xy - c, axis=1) / r for c, r in zip(centre, radius, strict=True)], axis=0)
    wave = rng.normal(0, 1 / 30.0, (2, 24))
    return depth + 0.25 * np.cos(xy @ wave + rng.uniform(0, 2 * np.pi, 24)).mean(axis=1) * np.sqrt(24 / 2)


def _discs(
    rng: np.random.Generator, xy: np.ndarray, niche: np.ndarray, taken: np.ndarray, part: float,
    radii: tuple[float, float], side: float, inner: str, outer: str,
) -> None:  # fmt: skip
    """Put round structures, their outer layer one cell thick, outside the nests until they hold a part of cells."""
    tree, marked = cKDTree(xy), 0
    for _ in range(4 * len(xy)):
        if marked >= part * len(xy):
            return
        centre, radius = rng.uniform(0, side, 2), rng.uniform(*radii)
        inside = np.array([i for i in tree.query_ball_point(centre, radius) if not taken[i]], dtype=int)
        distance = np.linalg.norm(xy[inside] - centre, axis=1)
        niche[inside] = np.where(distance > radius - 9.0, NICHES.index(outer), NICHES.index(inner))
        marked += len(inside)


def _vessels(rng: np.random.Generator, xy: np.ndarray, niche: np.ndarray, part: float, side: float) -> None:
    """Lead vessels through stroma and rim: a lining of one cell along a bent line, mural cells beside it."""
    tree, marked = cKDTree(xy), 0
    free = np.isin(niche, [NICHES.index("stroma"), NICHES.index("rim"), NICHES.index("nest")])
    while marked < 0.8 * part * len(xy):
        turn = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.25, rng.integers(8, 40)))
        line = rng.uniform(0, side, 2) + np.cumsum(6.0 * np.stack([np.cos(turn), np.sin(turn)], axis=1), axis=0)
        line = line[((line >= 0) & (line <= side)).all(axis=1)]
        for reach, name in ((14.0, "mural"), (6.5, "vessel")):
            cells = np.unique([i for near in tree.query_ball_point(line, reach) for i in near]).astype(int)
            cells = cells[free[cells]]
            niche[cells] = NICHES.index(name)
        marked += len(cells) + 1


def _depths(rng: np.random.Generator, known: Panel, label: np.ndarray, kind: str) -> np.ndarray:
    usual = known.types["depth"].to_numpy(float)[label]
    if kind == "scrna":
        depth = rng.lognormal(np.log(0.85 * usual), 0.55).clip(12, 3000)
        depth[rng.random(len(label)) < 0.08] *= 0.3
        return depth
    depth = rng.lognormal(np.log(105.0 * (usual / 150.0) ** 0.55), 0.45).clip(10, 600)
    depth[rng.random(len(label)) < 0.04] *= 0.15
    return depth


def _rates(rng: np.random.Generator, known: Panel, label: np.ndarray, patient: np.ndarray, kind: str) -> np.ndarray:
    """Give the expression of each cell (n x gene), on no fixed scale."""
    genes, types = len(known.genes), len(known.types)
    study = (known.profile + 0.012) * rng.lognormal(0, 0.3, (types, genes))
    people = patient.max() + 1
    mean = study * rng.lognormal(0, 0.2 if kind == "scrna" else 0.1, (people, 1, genes))
    for coarse, sd in (("epithelial", 0.3), ("fibroblast", 0.15), ("malignant", 0.5)):
        mean[:, known.where(coarse)] *= rng.lognormal(0, sd, (people, 1, genes))
    tumours = known.where("malignant")
    change = rng.random((people, 1, genes))
    mean[:, tumours] *= np.where(change < 0.04, 0.1, np.where(change > 0.97, 4.0, 1.0))
    rate = mean[patient, label]
    rate += rng.beta(1.0, 4.0, len(label))[:, None] * (mean[patient, _sibling(rng, known, label)] - rate)
    clone = rng.lognormal(0, 0.25, (people, 3, genes))[patient, rng.integers(3, size=len(label))]
    rate *= np.where(np.isin(label, tumours)[:, None], clone, 1.0)
    _add_states(rng, known, rate, label, patient, kind)
    latent = rng.normal(0, 1, (len(label), 6)) @ rng.normal(0, 0.18, (6, genes))
    rate *= np.exp(latent) * rng.gamma(1.6, 1 / 1.6, rate.shape)
    return rate * rng.lognormal(0, 0.6 if kind == "xenium" else 0.4, genes)


def _sibling(rng: np.random.Generator, known: Panel, label: np.ndarray) -> np.ndarray:
    """Pick for each cell a type that its own passes into; the type itself where there is none."""
    near = [[i] for i in range(len(known.types))]
    for i, names in enumerate(known.types["siblings"]):
        if names != "-":
            near[i] = known.types.index.get_indexer(names.split(",")).tolist()
    assert min(min(places) for places in near) >= 0, "a sibling is no type of the panel"
    return np.array([near[i][k % len(near[i])] for i, k in zip(label, rng.integers(60, size=len(label)), strict=True)])


def _add_states(
    rng: np.random.Generator, known: Panel, rate: np.ndarray, label: np.ndarray, patient: np.ndarray, kind: str
) -> None:
    """Add cell cycle, dissociation stress, hypoxia and interferon response to single cells."""
    n, people = len(label), patient.max() + 1
    tumours = np.isin(label, known.where("malignant"))
    speed = np.where(tumours, rng.lognormal(0, 0.4, people)[patient], 1.0)
    cycling = rng.random(n) < np.clip(known.types["cycling"].to_numpy(float)[label] * speed, 0, 0.45)
    activity = {
        "stress": rng.exponential(1.0, n) * (rng.uniform(0.3, 1.5, people)[patient] if kind == "scrna" else 0.3),
        "hypoxia": rng.exponential(1.0, n) * np.where(tumours, 0.6, 0.2),
        "interferon": rng.exponential(1.0, n) * rng.uniform(0.05, 0.6, people)[patient],
    }
    for state, active in activity.items():
        if state in known.states:
            rate += active[:, None] * known.states[state] * (rate + 0.1) / (rate + 1.0)
    rate += (cycling * rng.uniform(0.3, 1.5, n))[:, None] * known.states["cycling"]


def _spill(rng: np.random.Generator, counts: np.ndarray, xy: np.ndarray, share: float) -> np.ndarray:
    """Move a share of the transcripts, uneven by gene, each to one of the twelve nearest cells, mostly the nearest."""
    if share == 0:
        return counts
    near = cKDTree(xy).query(xy, k=13)[1][:, 1:]
    leak = rng.gamma(5.0, share / 5.0, counts.shape[1]).clip(0, 0.6)
    lost = rng.binomial(counts, leak)
    cell, gene = np.nonzero(lost)
    times = lost[cell, gene]
    cell, gene = np.repeat(cell, times), np.repeat(gene, times)
    weight = 1.0 / np.arange(1, 13)
    out = counts - lost
    np.add.at(out, (near[cell, rng.choice(12, len(cell), p=weight / weight.sum())], gene), 1)
    return out


def _doublets(
    rng: np.random.Generator, counts: np.ndarray, xy: np.ndarray, patient: np.ndarray, share: float
) -> np.ndarray:
    """Give what doublets add: the counts of the nearest cell in a slide, of any cell of the patient in a table."""
    added = np.zeros_like(counts)
    pairs = np.flatnonzero(rng.random(len(counts)) < share)
    if np.isnan(xy).any():
        other = np.array([rng.choice(np.flatnonzero(patient == patient[i])) for i in pairs], dtype=int)
    else:
        other = cKDTree(xy).query(xy[pairs], k=2)[1][:, 1]
    added[pairs] = counts[other]
    return added


def _ambient(
    rng: np.random.Generator, counts: np.ndarray, patient: np.ndarray, share: float | None, kind: str
) -> np.ndarray:
    """Give what the soup of each patient adds: about as much to a small cell as to a large one."""
    added = np.zeros_like(counts)
    for i in range(patient.max() + 1):
        part = share if share is not None else (rng.uniform(0.03, 0.08) if kind == "scrna" else 0.0)
        mine = np.flatnonzero(patient == i)
        if part == 0 or not len(mine):
            continue
        soup = counts[mine].sum(axis=0) / len(mine)
        drops = rng.lognormal(-0.125, 0.5, len(mine)) * part / (1 - part)
        added[mine] = rng.poisson(np.outer(drops, soup))
    return added
