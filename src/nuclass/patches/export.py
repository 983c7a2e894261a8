"""Write the cells of a slide as the three files of the original: windows at two scales and annotations.

For hand-over to programs that read those files. Training and evaluation read the slide store itself, a thousandth of
the size.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, GLOBAL, KEPT, LABELLED, LOCAL
from nuclass.core.patch_rows import PARTS, patch_names
from nuclass.core.progress import Progress, readable_bytes
from nuclass.patches.annotations import ORIGINAL_NAMES, write_annotations
from nuclass.patches.encode import Compression, chunk_options, encode, encoder
from nuclass.patches.patch_file import IMAGES, KEYS, PADDED, Layout
from nuclass.patches.sink import written_h5
from nuclass.patches.stale import check_store_fits, same_cells
from nuclass.patches.states import SLIDE_FILE
from nuclass.patches.virtual import add_virtual_images, refuse_many, slide_bytes, write_slide
from nuclass.slides.geometry import window_origin
from nuclass.slides.store import SlideStore

if TYPE_CHECKING:
    import pandas as pd

ClassNames = Literal["original", "study"]
MODALITY = "bright field H&E"
_EMPTY_FIX = "see the funnel table and the label summaries for the step that lost them"
_BATCH_BYTES = 64_000_000
_SAMPLED = 16
_RECORD_BYTES = 600
_VIRTUAL_BYTES = 200
_DATASET_BYTES = 2600
_log = get_logger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    folder
        Where.
    cells
        Folder in it (empty for itself, else ``train`` and ``test``) -> number of cells.
    left_out
        Why a cell was left out -> number of cells.
    """

    folder: Path
    cells: dict[str, int]
    left_out: dict[str, int]


def export_patches(
    store: SlideStore,
    cells: pd.DataFrame,
    labels: pd.DataFrame,
    out: str | Path,
    windows: Mapping[str, int],
    *,
    slide: str,
    organ: str,
    patient: str,
    mpp: float,
    layout: Layout = "merged",
    compression: Compression = "lzf",
    class_names: ClassNames = "original",
    virtual: bool = False,
    splits: pd.DataFrame | None = None,
    replace: bool = False,
    threads: int = 1,
) -> Exported:
    """Write ``patches_224x224.h5``, ``patches_1024x1024.h5`` (by the windows' sides) and ``annotations.json``.

    Parameters
    ----------
    store
        The slide.
    cells
        ``cells.parquet`` of the slide: cell_id, x_um, y_um, x_px, y_px, status; x_he, y_he to see that store and table
        belong together.
    labels
        ``labels.parquet`` of the slide: cell_id, class, status. Cells labelled with a class are written.
    out
        The folder to make; it appears when all is written.
    windows
        Sides in px by ``local`` and ``global``.
    slide, organ, patient
        Written as slide_id, tissue_type and patient_id.
    mpp
        Micrometres per pixel of the study.
    layout
        ``merged``: ``images`` with one window a chunk, ``keys``, and ``padded``, the share of each window off the
        slide. ``per_key``: one dataset a cell.
    compression
        Of the windows.
    class_names
        ``original``: names that the original's programs map to the classes; ``study``: the classes' own.
    virtual
        Keep the slide once (``slide.h5``) and let the windows point into it.
    splits
        Table cell_id, split: write train to ``train/`` and val to ``test/``, and leave the others out.
    replace
        Replace what an earlier export left in ``out``.
    threads
        So many windows are compressed at a time.

    Raises
    ------
    UserError
        Tables or store do not belong together, no cell is left, an id cannot be written, ``out`` holds files, or the
        disk has too little space.

    Memory does not grow with the number of cells but for the tables: one batch of windows and the tiles of the store.
    """
    folder = Path(out)
    _check_target(folder, replace)
    check_store_fits(store, cells, mpp, windows[LOCAL] / 2)
    chosen, left_out = _chosen(cells, labels, splits)
    names = patch_names(windows)
    _check_ids(chosen[CELL_ID], layout)
    if virtual:
        if layout != "merged":
            raise UserError(
                "Virtual windows need the merged layout", found=f"layout {layout}", fix="leave --layout out"
            )
        refuse_many(len(chosen))
    parts = {"": chosen}
    if splits is not None:
        parts = {part: chosen[chosen["split"] == split] for part, split in PARTS.items()}
    for name, part in parts.items():
        if part.empty:
            raise UserError("No cell is left to export", where=slide, found=f"0 cells for {name}/", fix=_EMPTY_FIX)
    needed = _bytes_needed(store, chosen, windows, layout, compression, virtual)
    _check_space(folder, needed, len(chosen))
    steps = len(windows) * len(chosen)
    with atomic_path(folder) as root, Progress(steps, f"Windows of {slide}", "windows") as progress:
        root.mkdir()
        if virtual:
            write_slide(store, root / SLIDE_FILE)
        for name, part in parts.items():
            place = root / name
            place.mkdir(exist_ok=True)
            for role in (LOCAL, GLOBAL):
                job = _Job(store, part, windows[role], layout, compression, threads, progress)
                if virtual:
                    job.write_virtual(place / names[role], "../" * bool(name) + SLIDE_FILE)
                else:
                    job.write(place / names[role])
            # In the order of the table: a study that takes the files in again sees its cells in the same order.
            ordered = part.sort_values("place")
            if class_names == "original":
                ordered = ordered.assign(**{"class": ordered["class"].replace(ORIGINAL_NAMES)})
            record = _annotations(store, ordered, max(windows.values()), slide, organ, patient)
            write_annotations(place / names["annotations"], record)
    counts = {name: len(part) for name, part in parts.items()}
    told = ", ".join(f"{number} cells" + (f" in {name}/" if name else "") for name, number in counts.items())
    gone = ", ".join(f"{number} {why}" for why, number in left_out.items() if number) or "none"
    _log.info("%s: %s written to %s; left out: %s", slide, told, folder, gone)
    return Exported(folder, counts, left_out)


def _chosen(
    cells: pd.DataFrame, labels: pd.DataFrame, splits: pd.DataFrame | None
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the cells to write in the order of their ids, with class, split and place in the table; why not others."""
    labels = same_cells(cells, labels, "labels")
    known = labels["class"].fillna("").astype(str).where(labels["status"] == LABELLED, "")
    labelled = (known != "").to_numpy()
    kept = (cells["status"] == KEPT).to_numpy() if "status" in cells else np.ones(len(cells), bool)
    table = cells[[CELL_ID, "x_um", "y_um", "x_px", "y_px"]].reset_index(drop=True)
    table = table.assign(**{"class": known.to_numpy(), "split": "", "place": np.arange(len(table))})
    table[CELL_ID] = table[CELL_ID].astype(str)
    use = labelled & kept
    left_out = {"without a class": int((~use).sum())}
    if splits is not None:
        table["split"] = same_cells(cells, splits, "splits")["split"].astype(str).to_numpy()
        written = table["split"].isin(PARTS.values()).to_numpy()
        counts = table.loc[use & ~written, "split"].value_counts()
        left_out |= {f"in {name}": int(number) for name, number in counts.items()}
        use &= written
    if not use.any():
        raise UserError("No cell is left to export", found=f"0 of {len(cells)} cells", fix=_EMPTY_FIX)
    table = table[use]
    return table.iloc[np.argsort(table[CELL_ID].to_numpy(object), kind="stable")].reset_index(drop=True), left_out


def _check_ids(ids: pd.Series[Any], layout: Layout) -> None:
    """Refuse ids that HDF5 cannot hold, or that a dataset cannot be named by."""
    bad = ids[(ids == "") | ids.str.contains("[\0\ud800-\udfff]", regex=True)]
    if len(bad):
        raise UserError(
            "A cell id cannot be written",
            found=f"{len(bad)} ids, such as {bad.iloc[0]!r}",
            expected="text without NUL and half characters",
            fix="rename the cells",
        )
    bad = ids[ids.str.contains("/", regex=False) | (ids == ".")]
    if len(bad) and layout == "per_key":
        raise UserError(
            "A cell id cannot be the name of a dataset",
            found=f"{len(bad)} ids, such as {bad.iloc[0]!r}",
            expected="no '/', which makes groups in HDF5",
            fix="use --layout merged",
        )


def _check_target(folder: Path, replace: bool) -> None:
    """Refuse a folder with files in it, unless they are an earlier export that may go."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if folder.exists() and not folder.is_dir():
        raise UserError("The folder for the export is a file", where=folder, fix="name a folder with --out")
    if not found:
        return
    ours = {"annotations.json", SLIDE_FILE, *PARTS}
    strange = [name for name in found if name not in ours and not (name.startswith("patches_") and name[-3:] == ".h5")]
    if strange or not replace:
        raise UserError(
            "The folder for the export is not empty",
            where=folder,
            found=", ".join(strange[:3] or found[:3]),
            expected="a new or empty folder",
            fix="name another folder" + ("" if strange else ", or replace the earlier export with --overwrite"),
        )


def _bytes_needed(
    store: SlideStore,
    cells: pd.DataFrame,
    windows: Mapping[str, int],
    layout: Layout,
    compression: Compression,
    virtual: bool,
) -> int:
    """Return about how many bytes an export takes; what compression saves is measured on a few windows."""
    if virtual:
        return slide_bytes(store.shape) + (_VIRTUAL_BYTES * len(windows) + _RECORD_BYTES) * len(cells)
    some = cells.iloc[np.linspace(0, len(cells) - 1, min(_SAMPLED, len(cells))).astype(int)]
    each = sum(_bytes_a_window(store, some, size, compression) for size in windows.values())
    beside = _DATASET_BYTES * len(windows) if layout == "per_key" else 0
    return int((each + beside + _RECORD_BYTES) * len(cells))


def _check_space(folder: Path, needed: int, cells: int) -> None:
    """Refuse to begin what the disk has no space for."""
    disk = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    _log.info("about %s are needed, %s are free", readable_bytes(needed), readable_bytes(free))
    if needed > free:
        raise UserError(
            "The disk has too little space for the windows",
            where=folder,
            found=f"{readable_bytes(free)} free",
            expected=f"about {readable_bytes(needed)} for {cells} cells",
            fix="free space, export to another disk, or use --virtual for up to 100,000 cells",
        )


def _bytes_a_window(store: SlideStore, some: pd.DataFrame, size: int, compression: Compression) -> float:
    places = some[["x_px", "y_px"]].to_numpy(np.float64)
    return sum(len(encode(store.window(x, y, size)[0], compression)[0]) for x, y in places) / len(some)


@dataclass(frozen=True)
class _Job:
    """Writing the windows of one size for the cells of one folder."""

    store: SlideStore
    cells: pd.DataFrame
    size: int
    layout: Layout
    compression: Compression
    threads: int
    progress: Progress

    @property
    def xy(self) -> NDArray[np.float64]:
        points: NDArray[np.float64] = self.cells[["x_px", "y_px"]].to_numpy(np.float64)
        return points

    def write(self, path: Path) -> None:
        """Write windows as pixels, cut in tile order; each is one chunk, so that reading it reads nothing else."""
        shape = (self.size, self.size, 3)
        ids = self.cells[CELL_ID].tolist()
        batch = max(_BATCH_BYTES // (self.size * self.size * 3), 1)
        with written_h5(path) as (file, sink), ThreadPoolExecutor(self.threads) as pool:
            encoded = encoder(self.compression, pool)
            if self.layout == "merged":
                options = chunk_options((1, *shape), self.compression)
                images = file.create_dataset(IMAGES, (len(ids), *shape), np.uint8, **options)
                self._write_keys(file)
            options = chunk_options(shape, self.compression)
            for rows, cut in self.store.batches(self.xy, self.size, batch=batch):
                for row, (data, left_out) in zip(rows.tolist(), encoded(cut), strict=True):
                    if self.layout == "merged":
                        images.id.write_direct_chunk((row, 0, 0, 0), data, left_out)
                    else:
                        one = file.create_dataset(ids[row], shape, np.uint8, **options)
                        one.id.write_direct_chunk((0, 0, 0), data, left_out)
                    sink.check()
                    self.progress.advance()

    def write_virtual(self, path: Path, source: str) -> None:
        """Write where in the file ``source`` the windows lie."""
        origins = window_origin(self.xy, self.size)
        with written_h5(path) as (file, _):
            add_virtual_images(file, source, self.store.shape, origins, self.size, self.progress.advance)
            self._write_keys(file)

    def _write_keys(self, file: Any) -> None:
        import h5py

        file.create_dataset(KEYS, data=self.cells[CELL_ID].tolist(), dtype=h5py.string_dtype("utf-8"))
        file.create_dataset(PADDED, data=self.store.padded_fractions(self.xy, self.size).astype(np.float32))


def _annotations(
    store: SlideStore, cells: pd.DataFrame, widest: int, slide: str, organ: str, patient: str
) -> pd.DataFrame:
    """Return the records of cells, one column a field."""
    import pandas as pd

    xy = cells[["x_px", "y_px"]].to_numpy(np.float64)
    return pd.DataFrame(
        {
            CELL_ID: cells[CELL_ID],
            "micron_per_pixel": store.mpp,
            "magnification": f"{10 / store.mpp:g}x",
            "image_modality": MODALITY,
            "slide_id": slide,
            "tissue_type": organ,
            "patient_id": patient,
            "has_padding_flags": store.padded_fractions(xy, widest) > 0,
            "has_truncation_flags": False,
            "centroid_x": xy[:, 0],
            "centroid_y": xy[:, 1],
            "class_id": cells["class"],
            "micron_x_centroid": cells["x_um"].astype("float64"),
            "micron_y_centroid": cells["y_um"].astype("float64"),
        }
    )
