"""Outlines of nuclei and cells as radial functions, shared by the images and the boundary files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nuclass.synthetic.classes import LOOKS
from nuclass.synthetic.raster import area_and_centroid

N_VERTICES = 25


@dataclass(frozen=True)
class Shapes:
    """Outlines of N cells, in micrometres and in the bundle's frame.

    ``centre`` (N, 2) is the nucleus centre, ``axes`` (N, 2) its semi-axes, ``angle`` (N,) the direction of
    the long axis, ``amplitude`` and ``phase`` (N, 3) the wobble of the outline, ``cell_centre`` (N, 2)
    and ``cell_radius`` (N, 2) the body around it.
    """

    centre: np.ndarray
    axes: np.ndarray
    angle: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray
    cell_centre: np.ndarray
    cell_radius: np.ndarray

    def nucleus_polygons(self) -> np.ndarray:
        """Return closed outlines (N, 25, 2) of the nuclei, their area centroid exactly at ``centre``."""
        theta = np.linspace(0, 2 * np.pi, N_VERTICES)
        radius = 1 + wobble(np.cos(theta), np.sin(theta), self.amplitude[:, None, :], self.phase[:, None, :])
        local = np.stack([self.axes[:, :1] * radius * np.cos(theta), self.axes[:, 1:] * radius * np.sin(theta)], -1)
        polygons = _turn(local, self.angle)
        polygons -= area_and_centroid(polygons)[1][:, None, :]
        return polygons + self.centre[:, None, :]

    def nucleus_offset(self) -> np.ndarray:
        """Return (N, 2) in the nucleus' own axes: what to add so that its area centroid is the centre."""
        theta = np.linspace(0, 2 * np.pi, N_VERTICES)
        radius = 1 + wobble(np.cos(theta), np.sin(theta), self.amplitude[:, None, :], self.phase[:, None, :])
        local = np.stack([self.axes[:, :1] * radius * np.cos(theta), self.axes[:, 1:] * radius * np.sin(theta)], -1)
        return area_and_centroid(local)[1]

    def cell_polygons(self) -> np.ndarray:
        """Return closed outlines (N, 25, 2) of the cells."""
        theta = np.linspace(0, 2 * np.pi, N_VERTICES)
        radius = 1 + 0.6 * wobble(np.cos(theta), np.sin(theta), self.amplitude[:, None, :], self.phase[:, None, :])
        local = np.stack(
            [self.cell_radius[:, :1] * radius * np.cos(theta), self.cell_radius[:, 1:] * radius * np.sin(theta)], -1
        )
        return _turn(local, self.angle) + self.cell_centre[:, None, :]


def wobble(cos: np.ndarray, sin: np.ndarray, amplitude: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return the relative deviation of an outline from its ellipse: sum of a_n sin(n theta + phase_n), n = 2, 3, 4.

    ``cos`` and ``sin`` are those of the angles theta; ``amplitude`` and ``phase`` have the harmonics as last axis.
    They follow from each other by the addition theorems, many times faster than by a sine each.
    """
    total = np.zeros((), cos.dtype)
    cos_n, sin_n = cos, sin
    for a, shift in zip(np.moveaxis(amplitude, -1, 0), np.moveaxis(phase, -1, 0), strict=True):
        cos_n, sin_n = cos_n * cos - sin_n * sin, sin_n * cos + cos_n * sin
        total = total + (a * np.cos(shift)) * sin_n + (a * np.sin(shift)) * cos_n
    return total


def make_shapes(cells: pd.DataFrame, rng: np.random.Generator) -> Shapes:
    """Draw the outlines of all cells of a tissue."""
    n = len(cells)
    lobes = np.array([LOOKS[name].lobes for name in cells["class"]])
    body = np.array([LOOKS[name].body for name in cells["class"]])
    centre = cells[["x", "y"]].to_numpy(float)
    axes = cells[["a", "b"]].to_numpy(float)
    shift_angle = rng.uniform(0, 2 * np.pi, n)
    shift = rng.uniform(0.5, 1.6, n)
    cell_centre = centre + shift[:, None] * np.stack([np.cos(shift_angle), np.sin(shift_angle)], 1)
    grown = axes + 1.2
    return Shapes(
        centre=centre,
        axes=axes,
        angle=cells["angle"].to_numpy(float),
        amplitude=lobes[:, None] * rng.uniform(0.2, 1.0, (n, 3)) * np.array([1.0, 0.7, 0.4]),
        phase=rng.uniform(0, 2 * np.pi, (n, 3)),
        cell_centre=cell_centre,
        cell_radius=np.maximum(grown, 0.55 * body[:, None] + 0.45 * grown) * np.exp(rng.normal(0, 0.06, (n, 1))),
    )


def _turn(local: np.ndarray, angle: np.ndarray) -> np.ndarray:
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.stack([local[..., 0] * c - local[..., 1] * s, local[..., 0] * s + local[..., 1] * c], -1)
