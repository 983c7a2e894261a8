"""Figures of several pages: one PDF of all, one picture a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nuclass.core.files import atomic_path, write_csv
from nuclass.figures.style import GREY, NOTE, file_options

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM_PER_INCH = 25.4
FOOT_MM = 3.2
"""Left free at the foot of a page, for the note on synthetic studies."""


def save_pages(
    pages: Iterable[Figure],
    outputs: Sequence[str | Path],
    csv: str | Path,
    numbers: pd.DataFrame,
    *,
    synthetic: bool,
) -> None:
    """Write the pages to one PDF, and each to its picture in every other format; and their numbers as CSV.

    Parameters
    ----------
    pages
        Figures in the shared style; each is closed before the next is asked for.
    outputs
        One ``.pdf``, where it is asked for, and for every other suffix one file a page, in the order of the pages.
    synthetic
        Whether the foot of each page says so.

    Raises
    ------
    ValueError
        Where a suffix has more or fewer files than there are pages.
    """
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_pdf import PdfPages

    paths = [Path(path) for path in outputs]
    pictures = {s: [p for p in paths if p.suffix == s] for s in dict.fromkeys(p.suffix for p in paths)}
    documents = pictures.pop(".pdf", [])
    count = 0
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_path(path)) for path in documents]
        opened = [stack.enter_context(PdfPages(path, metadata={"CreationDate": None})) for path in files]
        for fig in pages:
            if synthetic:
                _note(fig)
            for pdf in opened:
                fig.savefig(pdf, format="pdf")
            for suffix, own in pictures.items():
                if count >= len(own):
                    raise ValueError(f"{len(own)} files {suffix} are named for {count + 1} pages or more")
                with atomic_path(own[count]) as temporary:
                    fig.savefig(temporary, format=suffix[1:], **file_options(fig, suffix))
            plt.close(fig)
            count += 1
        for suffix, own in pictures.items():
            if len(own) != count:
                raise ValueError(f"{len(own)} files {suffix} are named for {count} pages")
    write_csv(csv, numbers)


def axes_mm(fig: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return new axes whose frame lies so many millimetres from the left and the top edge of the figure."""
    across, down = fig.get_figwidth() * MM_PER_INCH, fig.get_figheight() * MM_PER_INCH
    return fig.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def text_mm(fig: Figure, left: float, top: float, text: str, **look: object) -> None:
    """Write text with its upper left corner so many millimetres from the left and the top edge of the figure."""
    across, down = fig.get_figwidth() * MM_PER_INCH, fig.get_figheight() * MM_PER_INCH
    fig.text(left / across, 1 - top / down, text, **{"ha": "left", "va": "top", **look})  # type: ignore[arg-type]


def mm_figure(style: str | Path, width: float, height: float) -> Figure:
    """Return an empty figure of that size in mm in the shared style; axes stay where :func:`axes_mm` puts them."""
    import matplotlib.pyplot as plt

    plt.style.use(str(style))
    fig = plt.figure(figsize=(width / MM_PER_INCH, height / MM_PER_INCH))
    fig.set_layout_engine("none")
    return fig


def _note(fig: Figure) -> None:
    """Write the note on synthetic studies, and keep what is laid out by itself off it."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    down = fig.get_figheight() * MM_PER_INCH
    engine = fig.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, FOOT_MM / down, 1, 1 - FOOT_MM / down))
    fig.text(0.995, 0.6 / down, NOTE, ha="right", va="bottom", fontsize=5, color=GREY, style="italic")
