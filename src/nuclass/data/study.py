"""A study's slides, where their files lie, and at what scale its windows are cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError, closest

if TYPE_CHECKING:
    from nuclass.patches.windows import WindowReader


@dataclass(frozen=True)
class Study:
    """Where a study lies and at what scale.

    Attributes
    ----------
    slides
        One dictionary a slide with ``slide`` and ``organ``. Files that lie elsewhere than below ``results`` are given
        here too: ``windows`` (the slide store, or the manifest ``patches.json`` of patch files), ``cells``,
        ``labels``, ``splits``, ``features``, ``views`` and ``gate_features``.
    results
        The results folder, laid out as docs/outputs.md tells.
    mpp
        Micrometres per pixel of the windows.
    windows
        Sides in level-0 pixels: ``local`` and ``global``.
    cache_mb
        Decoded tiles kept in memory while windows are cut.
    """

    slides: list[dict[str, Any]]
    results: Path
    mpp: float = 0.25
    windows: dict[str, int] = field(default_factory=lambda: {"local": 224, "global": 1024})
    cache_mb: int = 64

    def source(self, slide: str) -> Path:
        """Return where a slide's windows come from: its ``windows``, else its store below ``results``."""
        names = [str(row["slide"]) for row in self.slides]
        if slide not in names:
            raise UserError(
                "A slide is not one of the study's",
                found=slide + closest(slide, names),
                expected=" | ".join(names),
                fix="add it to the slides of the study",
            )
        return self._place(slide, "windows", f"slides/{slide}/he.ome.zarr")

    def features(self, slide: str) -> Path:
        """Return the path of a slide's cached context features, (N, K)."""
        return self._place(slide, "features", f"features/context/{slide}.h5")

    def views(self, slide: str) -> Path:
        """Return the path of the context features of train and val cells under augmentation, (N, V, K)."""
        return self._place(slide, "views", f"features/context/{slide}.views.h5")

    def gate_features(self, slide: str) -> Path:
        """Return the path of the context features that the gate reads under ``smaller_gate_context``, (N, K)."""
        return self._place(slide, "gate_features", f"features/context_gate/{slide}.h5")

    def _place(self, slide: str, what: str, default: str) -> Path:
        given = next((row.get(what) for row in self.slides if row["slide"] == slide), None)
        return Path(given or Path(self.results) / default)

    def reader(self) -> WindowReader:
        """Return a window reader of all slides."""
        from nuclass.patches.windows import WindowReader

        return WindowReader({str(row["slide"]): self.source(row["slide"]) for row in self.slides}, self.cache_mb)
