"""The H&E image of a tissue, drawn in its own frame, and the DAPI image in the bundle's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from nuclass.synthetic.classes import LOOKS
from nuclass.synthetic.shapes import Shapes, wobble
from nuclass.synthetic.tissue import Tissue

_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.16, 0.96, 0.22])
_TEXTURE = 512


@dataclass(frozen=True)
class Stain:
    """How a slide was stained and scanned: optical-density vectors (3,), strengths, glass, blur, noise."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    strength: tuple[float, float]
    glass: np.ndarray
    blur_um: float
    noise: float


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw the staining of one slide."""
    vectors = []
    for base in (_HAEMATOXYLIN, _EOSIN):
        vector = np.clip(base + rng.normal(0, 0.035, 3), 0.02, None)
        vectors.append(vector / np.linalg.norm(vector))
    return Stain(
        haematoxylin=vectors[0],
        eosin=vectors[1],
        strength=(float(rng.uniform(0.85, 1.15)), float(rng.uniform(0.82, 1.18))),
        glass=rng.uniform(238, 250, 3),
        blur_um=float(rng.uniform(0.22, 0.36)),
        noise=float(rng.uniform(2.0, 4.0)),
    )


@dataclass(frozen=True)
class Canvas:
    """A pixel grid over the tissue: ``to_px`` (2, 3) maps bundle micrometres to continuous pixels (x, y)."""

    height: int
    width: int
    to_px: np.ndarray

    @property
    def px_per_um(self) -> float:
        """Pixels per micrometre."""
        return float(np.sqrt(abs(np.linalg.det(self.to_px[:, :2]))))

    def points(self, xy_um: np.ndarray) -> np.ndarray:
        """Map points (N, 2) from micrometres to pixels."""
        return xy_um @ self.to_px[:, :2].T + self.to_px[:, 2]


class _Patch:
    """The square of pixels around a cell, with each pixel's offset from its centre in micrometres."""

    def __init__(self, canvas: Canvas, inverse: np.ndarray, centre: np.ndarray, reach_um: float) -> None:
        reach = reach_um * canvas.px_per_um
        x0, x1 = max(0, int(centre[0] - reach)), min(canvas.width, int(centre[0] + reach) + 2)
        y0, y1 = max(0, int(centre[1] - reach)), min(canvas.height, int(centre[1] + reach) + 2)
        self.empty = x1 <= x0 or y1 <= y0
        self.window = (slice(y0, y1), slice(x0, x1))
        dx = (np.arange(x0, x1, dtype=np.float32) + 0.5 - centre[0])[None, :]
        dy = (np.arange(y0, y1, dtype=np.float32) + 0.5 - centre[1])[:, None]
        self.u = inverse[0, 0] * dx + inverse[0, 1] * dy
        self.v = inverse[1, 0] * dx + inverse[1, 1] * dy


def _radius(
    u: np.ndarray, v: np.ndarray, angle: float, axes: np.ndarray, amplitude: np.ndarray, phase: np.ndarray
) -> np.ndarray:
    """Return the relative distance from the centre: 1 on the outline."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    p, q = (u * c + v * s) / np.float32(axes[0]), (v * c - u * s) / np.float32(axes[1])
    radius = np.sqrt(p * p + q * q)
    inverse = 1 / np.maximum(radius, np.float32(1e-6))
    outline = 1 + wobble(p * inverse, q * inverse, amplitude.astype(np.float32), phase.astype(np.float32))
    return radius / outline


def _edge(rho: np.ndarray, softness: float) -> np.ndarray:
    """Return 1 inside, 0 outside, with a soft edge of relative width ``softness``."""
    return np.clip((1 - rho) / np.float32(softness) + np.float32(0.5), 0, 1)


def draw_he(tissue: Tissue, shapes: Shapes, canvas: Canvas, stain: Stain, rng: np.random.Generator) -> np.ndarray:
    """Draw the H&E image (height, width, 3), uint8, on ``canvas``."""
    scale = canvas.px_per_um
    eosin = _stroma(canvas, rng)
    haematoxylin = 0.05 + 0.10 * eosin
    inverse = np.linalg.inv(canvas.to_px[:, :2]).astype(np.float32)
    _cut_glass(tissue, canvas, inverse, eosin, haematoxylin)
    fine, coarse = _textures(rng, (0.45 * scale, 1.0 * scale))
    _draw_bodies(tissue, shapes, canvas, inverse, eosin, haematoxylin, coarse, rng)
    _draw_lumens(tissue, canvas, inverse, eosin, haematoxylin)
    _draw_nuclei(tissue, shapes, canvas, inverse, eosin, haematoxylin, (fine, coarse), rng)
    return _expose(haematoxylin, eosin, canvas, stain, rng)


def _stroma(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Draw collagen: fibres of changing direction, the same near tumour and far from it."""
    step = max(1, round(1.0 * canvas.px_per_um))
    shape = (canvas.height // step + 3, canvas.width // step + 3)
    rows, columns = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    waves = [gaussian_filter(rng.standard_normal(shape).astype(np.float32), 32) for _ in range(2)]
    down, right = (24 * wave / wave.std() for wave in waves)
    fibres = _unit(gaussian_filter(rng.standard_normal(shape).astype(np.float32), (1.1, 7.0), mode="wrap"))
    fibres = map_coordinates(fibres, [rows + down, columns + right], order=1, mode="grid-wrap")
    patches = _unit(gaussian_filter(rng.standard_normal(shape).astype(np.float32), 12))
    field = 0.37 + 0.07 * fibres + 0.03 * patches
    large = zoom(np.clip(field, 0.05, 0.8), step, order=1, grid_mode=True, mode="nearest")
    return np.ascontiguousarray(large[: canvas.height, : canvas.width], dtype=np.float32)


def _unit(field: np.ndarray) -> np.ndarray:
    return field / (field.std() + 1e-9)


def _cut_glass(
    tissue: Tissue, canvas: Canvas, inverse: np.ndarray, eosin: np.ndarray, haematoxylin: np.ndarray
) -> None:
    """Remove the stain outside the section."""
    origin = canvas.to_px[:, 2].astype(np.float32)
    x = np.arange(canvas.width, dtype=np.float32)[None, :] + 0.5 - origin[0]
    for top in range(0, canvas.height, 512):
        rows = slice(top, min(top + 512, canvas.height))
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5 - origin[1]
        u, v = inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y
        inside = np.minimum(np.minimum(u, tissue.width - u), np.minimum(v, tissue.height - v))
        share = np.clip(inside / 3 + 0.5, 0, 1)
        eosin[rows] *= share
        haematoxylin[rows] *= share


def _textures(rng: np.random.Generator, sigmas: tuple[float, ...]) -> list[np.ndarray]:
    """Return noise textures (periodic, unit variance) of given correlation lengths in pixels."""
    found = []
    for sigma in sigmas:
        noise = gaussian_filter(rng.standard_normal((_TEXTURE, _TEXTURE)).astype(np.float32), sigma, mode="wrap")
        found.append(noise / noise.std())
    return found


def _sample(texture: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(0, _TEXTURE - shape[0]), rng.integers(0, _TEXTURE - shape[1])
    return texture[y : y + shape[0], x : x + shape[1]]


def _draw_bodies(
    tissue: Tissue,
    shapes: Shapes,
    canvas: Canvas,
    inverse: np.ndarray,
    eosin: np.ndarray,
    haematoxylin: np.ndarray,
    texture: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Draw the cytoplasm of every cell over the stroma."""
    centres = canvas.points(shapes.cell_centre)
    kinds = tissue.cells["class"].to_numpy()
    for i in range(len(kinds)):
        look = LOOKS[kinds[i]]
        axes = np.maximum(shapes.cell_radius[i], look.body * 0.9)
        patch = _Patch(canvas, inverse, centres[i], float(axes.max()) * 1.35)
        if patch.empty:
            continue
        rho = _radius(patch.u, patch.v, shapes.angle[i], axes, 0.6 * shapes.amplitude[i], shapes.phase[i])
        mask = 0.92 * _edge(rho, 0.35)
        grain = 1 + 0.10 * _sample(texture, mask.shape, rng)
        view_e, view_h = eosin[patch.window], haematoxylin[patch.window]
        view_e += mask * (look.eosin * grain - view_e)
        view_h += mask * (look.basophilia * grain - view_h)


def _draw_lumens(
    tissue: Tissue, canvas: Canvas, inverse: np.ndarray, eosin: np.ndarray, haematoxylin: np.ndarray
) -> None:
    """Empty the lumens of glands, alveoli and vessels."""
    none = np.zeros(3)
    for (_, _, r), centre in zip(tissue.lumens, canvas.points(tissue.lumens[:, :2]), strict=True):
        patch = _Patch(canvas, inverse, centre, float(r) * 1.2)
        if patch.empty:
            continue
        keep = 1 - 0.95 * _edge(_radius(patch.u, patch.v, 0.0, np.array([r, r]), none, none), 0.15)
        eosin[patch.window] *= keep
        haematoxylin[patch.window] *= keep


def _draw_nuclei(
    tissue: Tissue,
    shapes: Shapes,
    canvas: Canvas,
    inverse: np.ndarray,
    eosin: np.ndarray,
    haematoxylin: np.ndarray,
    textures: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Draw every nucleus: membrane, chromatin, clumps, nucleoli."""
    fine, coarse = textures
    centres, offsets = canvas.points(shapes.centre), shapes.nucleus_offset()
    kinds = tissue.cells["class"].to_numpy()
    density = np.exp(rng.normal(0, 0.10, len(kinds)))
    for i in range(len(kinds)):
        look, axes = LOOKS[kinds[i]], shapes.axes[i]
        patch = _Patch(canvas, inverse, centres[i], float(axes.max()) * 1.5 + 1)
        if patch.empty:
            continue
        # The outline is drawn so that its area centroid, not its polar origin, lies on the centre.
        c, s = np.cos(shapes.angle[i]), np.sin(shapes.angle[i])
        u = patch.u + np.float32(c * offsets[i, 0] - s * offsets[i, 1])
        v = patch.v + np.float32(s * offsets[i, 0] + c * offsets[i, 1])
        rho = _radius(u, v, shapes.angle[i], axes, shapes.amplitude[i], shapes.phase[i])
        mask = _edge(rho, 0.22)
        clumps = _sample(coarse, mask.shape, rng)
        chromatin = 1 + look.clumps * clumps + 0.08 * _sample(fine, mask.shape, rng)
        chromatin += (0.25 + 0.35 * look.clumps) * np.exp(-(((rho - 0.88) / 0.12) ** 2))
        for _ in range(look.nucleoli):
            theta, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
            du, dv = u - far * axes[1] * np.cos(theta), v - far * axes[1] * np.sin(theta)
            chromatin += 0.7 * np.exp(-(du * du + dv * dv) / (2 * 0.55**2))
        view_e, view_h = eosin[patch.window], haematoxylin[patch.window]
        view_h += mask * (look.chromatin * density[i] * np.clip(chromatin, 0.25, 2.5) - view_h)
        view_e += mask * (0.18 - view_e)


def _expose(
    haematoxylin: np.ndarray, eosin: np.ndarray, canvas: Canvas, stain: Stain, rng: np.random.Generator
) -> np.ndarray:
    """Turn stain densities into camera counts by Beer and Lambert, with blur and noise, in row bands."""
    sigma = stain.blur_um * canvas.px_per_um
    for layer in (haematoxylin, eosin):
        gaussian_filter(layer, sigma, output=layer, truncate=3)
    image = np.empty((canvas.height, canvas.width, 3), np.uint8)
    h = (stain.haematoxylin * stain.strength[0] * 1.05).astype(np.float32)
    e = (stain.eosin * stain.strength[1] * 0.95).astype(np.float32)
    noise = rng.standard_normal((128 + 256, canvas.width, 3)).astype(np.float32) * np.float32(stain.noise)
    for top in range(0, canvas.height, 128):
        rows = slice(top, min(top + 128, canvas.height))
        start = int(rng.integers(0, 256))
        density = haematoxylin[rows, :, None] * h + eosin[rows, :, None] * e
        counts = stain.glass.astype(np.float32) * np.exp(-density) + noise[start : start + rows.stop - rows.start]
        image[rows] = np.clip(counts + 0.5, 0, 255).astype(np.uint8)
    return image


def draw_dapi(tissue: Tissue, shapes: Shapes, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Draw the DAPI image (height, width), uint16: bright nuclei on black."""
    image = np.zeros((canvas.height, canvas.width), np.float32)
    inverse = np.linalg.inv(canvas.to_px[:, :2]).astype(np.float32)
    centres = canvas.points(shapes.centre)
    kinds = tissue.cells["class"].to_numpy()
    brightness = np.exp(rng.normal(0, 0.15, len(kinds)))
    for i in range(len(kinds)):
        patch = _Patch(canvas, inverse, centres[i], float(shapes.axes[i].max()) * 1.5 + 1)
        if patch.empty:
            continue
        rho = _radius(patch.u, patch.v, shapes.angle[i], shapes.axes[i], shapes.amplitude[i], shapes.phase[i])
        view = image[patch.window]
        np.maximum(view, _edge(rho, 0.4) * (2600 * LOOKS[kinds[i]].chromatin * brightness[i]), out=view)
    return image.astype(np.uint16)
