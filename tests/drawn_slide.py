"""A drawn H&E with nuclei at known places, and a bundle that says where they are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from nuclass.slides.evidence import Nuclei
from nuclass.slides.geometry import Frames

PIXEL = 0.2125
VERTICES = 13


def matrix_of(turn_deg: float, scale: float, offset: tuple[float, float], mirrored: bool = False) -> np.ndarray:
    turn = np.deg2rad(turn_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * rotation @ np.diag([1, -1 if mirrored else 1])
    matrix[:2, 2] = offset
    return matrix


def moved(frames: Frames, x_um: float, y_um: float, turn_deg: float = 0.0, grow: float = 1.0) -> Frames:
    """The frames of an alignment that is off by this much along the H&E's axes, turned about the H&E's middle."""
    height, width = frames.he_shape
    middle = np.array([width / 2, height / 2])
    change = matrix_of(turn_deg, grow, (0.0, 0.0))
    change[:2, 2] = middle - change[:2, :2] @ middle + np.array([x_um, y_um]) / frames.mpp_he
    return Frames(frames.alignment @ np.linalg.inv(change), frames.pixel_size, frames.mpp_target, frames.he_shape)


@dataclass
class DrawnSlide:
    """``he`` nuclei centres in H&E px; ``radius`` (N, 2) half axes and ``angle`` of each; the true frames."""

    frames: Frames
    he: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    image: np.ndarray = field(repr=False)

    @property
    def outlines_he(self) -> np.ndarray:
        t = np.linspace(0, 2 * np.pi, VERTICES)
        cos, sin = np.cos(self.angle)[:, None], np.sin(self.angle)[:, None]
        x, y = self.radius[:, :1] * np.cos(t), self.radius[:, 1:] * np.sin(t)
        return self.he[:, None] + np.stack([cos * x - sin * y, sin * x + cos * y], -1)

    @property
    def nuclei(self) -> Nuclei:
        """The outlines in um, as the bundle has them."""
        outlines = self.frames.he_to_um(self.outlines_he)
        start = np.arange(len(outlines), dtype=np.int64) * VERTICES
        return Nuclei(outlines.reshape(-1, 2), start, self.frames.he_to_um(self.he))

    def other_section(self, um: float) -> Nuclei:
        """Nuclei of the same density, none of them the same: each moved and turned by itself."""
        rng = np.random.default_rng(2)
        he = self.he + rng.normal(0, um / self.frames.mpp_he, self.he.shape)
        return replace(self, he=he, angle=rng.uniform(0, np.pi, len(he))).nuclei

    def warped(self, um: float) -> Nuclei:
        """The nuclei moved by waves of this height, one and a half times as long as the slide."""
        at = self.he / np.array(self.image.shape[1::-1]) * 2 * np.pi / 1.5
        waves = np.stack([np.sin(at[:, 1] + 1), np.cos(at[:, 0])], axis=1)
        return replace(self, he=self.he + um / self.frames.mpp_he * waves).nuclei

    def boundaries(self) -> pd.DataFrame:
        xy = self.nuclei.xy
        ids = np.repeat([f"c{i}" for i in range(len(self.he))], VERTICES)
        return pd.DataFrame({"cell_id": ids, "vertex_x": xy[:, 0], "vertex_y": xy[:, 1]})

    def write(self, path: Path) -> Path:
        tifffile.imwrite(path, self.image, photometric="rgb", tile=(256, 256), compression="jpeg")
        return path

    def error_um(self, frames: Frames) -> np.ndarray:
        """Distance (N,) of each nucleus under other frames from where it is."""
        um = self.nuclei.centre
        return np.hypot(*((frames.um_to_he(um) - self.frames.um_to_he(um)) * self.frames.mpp_he).T)


def draw_slide(
    shape: tuple[int, int] = (2400, 3200),
    turn_deg: float = -88.5,
    mirrored: bool = False,
    mpp_he: float = 0.274,
    seed: int = 5,
    spacing_um: float = 16.0,
    glass_um: float = 40.0,
) -> DrawnSlide:
    """Draw tissue with nuclei: crowded in some places, sparse in others, none on the glass around it."""
    rng = np.random.default_rng(seed)
    height, width = shape
    frames = Frames(matrix_of(turn_deg, mpp_he / PIXEL, (300.0, 2500.0), mirrored), PIXEL, 0.25, shape)
    step, glass = spacing_um / mpp_he, glass_um / mpp_he
    grid = np.stack(np.meshgrid(np.arange(glass + step, width - glass - step, step),
                                np.arange(glass + step, height - glass - step, step)), -1).reshape(-1, 2)  # fmt: skip
    crowd = sum(
        np.exp(-((grid - centre) ** 2).sum(1) / (2 * (60 / mpp_he) ** 2))
        for centre in rng.uniform((0, 0), (width, height), (10, 2))
    )
    he = grid[rng.random(len(grid)) < np.clip(0.25 + crowd, 0, 1)]
    he = he + rng.uniform(-0.2, 0.2, he.shape) * step
    radius = rng.uniform(2.4, 4.0, (len(he), 2)) / mpp_he
    angle = rng.uniform(0, np.pi, len(he))
    image = np.full((height, width, 3), 244.0)
    edge = int(glass)
    image[edge:-edge, edge:-edge] = (226.0, 168.0, 205.0)
    image += rng.normal(0, 5, (height, width, 1))
    for (cx, cy), (a, b), turn in zip(he, radius, angle, strict=True):
        reach = int(max(a, b)) + 3
        rows = slice(max(int(cy) - reach, 0), int(cy) + reach)
        columns = slice(max(int(cx) - reach, 0), int(cx) + reach)
        y, x = np.mgrid[rows, columns] + 0.5
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        soft = np.clip((1 - np.hypot(u / a, v / b)) * min(a, b) + 0.5, 0, 1)[..., None]
        image[rows, columns] = image[rows, columns] * (1 - soft) + np.array([95.0, 70.0, 140.0]) * soft
    return DrawnSlide(frames, he, radius, angle, np.clip(image, 0, 255).astype(np.uint8))
