"""Check the three files of a data set: against each other, and their pixels against a slide or another data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID, KEPT
from nuclass.core.progress import Progress
from nuclass.patches.annotations import FIELDS, LABEL, peek_annotations, read_annotations
from nuclass.patches.trio import (
    ROLES,
    Part,
    Trio,
    assemble,
    check_disjoint,
    check_positions,
    check_scale,
    check_sides,
    close_parts,
    match_ids,
    open_parts,
)
from nuclass.patches.windows import locality_order, shrink
from nuclass.slides.geometry import window_origin
from nuclass.slides.store import SlideStore
from nuclass.xenium.checks import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
T = TypeVar("T")
Image = NDArray[np.uint8]
SAMPLE = 1000
_BATCH_BYTES = 64_000_000
_SAME_PLACE_PX = 0.01
_WHOLE = "square uint8 windows and their ids, finished and readable"
_SAME = "the same cell ids in all three files"
_SHOWN = 3


def verify_patches(
    folder: str | Path,
    windows: Mapping[str, int],
    mpp: float,
    *,
    store: SlideStore | None = None,
    cells: pd.DataFrame | None = None,
    against: str | Path | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> list[Check]:
    """Check a data set of three files.

    Parameters
    ----------
    folder
        The folder of the files, or of ``train/`` and ``test/`` with them.
    windows, mpp
        Sides in px by ``local`` and ``global``, and scale, of the study.
    store, cells
        The slide that the windows were cut from and its table (cell_id, x_px, y_px): pixels are to be equal to it.
    against
        Another data set that is to hold the same cells, labels and pixels.
    sample
        Cells whose pixels are looked at, drawn at random; 0 for all.
    seed
        Of the draw.

    Returns
    -------
    One check a rule. Later rules that need what an earlier one found broken are skipped.
    """
    checks: list[Check] = []
    trio = _open(folder, windows, mpp, checks)
    if trio is None:
        return checks
    with trio:
        chosen = _draw(len(trio.rows), sample, seed)
        checks += _check_look(trio, chosen)
        if store is not None and cells is not None:
            checks += _against_store(trio, chosen, store, cells, windows)
        if against is not None:
            other_checks: list[Check] = []
            other = _open(against, windows, mpp, other_checks)
            if other is None:
                bad = "; ".join(check.found for check in other_checks if check.verdict == "fail")
                checks.append(Check("the other data set", "fail", bad, "three files that fit", str(against)))
            else:
                with other:
                    checks += _against_trio(trio, other, chosen)
    return checks


def _attempt(
    checks: list[Check], name: str, expected: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T | None:
    """Return what a call gives; a :class:`UserError` becomes a failed check."""
    try:
        return call(*args, **kwargs)
    except UserError as error:
        found = error.what if error.found is None else f"{error.what}: {error.found}"
        detail = "; ".join(str(part) for part in (error.where, error.fix) if part)
        checks.append(Check(name, "fail", found, str(error.expected or expected), detail))
        return None


def _open(folder: str | Path, windows: Mapping[str, int], mpp: float, checks: list[Check]) -> Trio | None:
    """Open a data set, rule by rule; None if it cannot be used."""
    parts = _attempt(checks, "files", _WHOLE, open_parts, folder, windows)
    if parts is None:
        return None
    trio = _matched(folder, parts, windows, mpp, checks)
    if trio is None:
        close_parts(parts)
    return trio


def _matched(
    folder: str | Path, parts: list[Part], windows: Mapping[str, int], mpp: float, checks: list[Check]
) -> Trio | None:
    """Check open files against each other, rule by rule."""
    described = [
        f"{file.path.relative_to(folder)} {file.layout}, {file.count}" for part in parts for file in part.files.values()
    ]
    notes = [note for part in parts for file in part.files.values() for note in file.notes]
    verdict: Verdict = "warn" if notes else "pass"
    checks.append(Check("files", verdict, "; ".join(described), _WHOLE, "; ".join(dict.fromkeys(notes))))
    frames: list[pd.DataFrame] = []
    matched: list[pd.DataFrame] = []
    for part in parts:
        frame = _records(part, checks)
        rows = None if frame is None else _attempt(checks, _named("ids", part), _SAME, match_ids, frame[CELL_ID], part)
        if frame is None or rows is None:
            return None
        checks.append(Check(_named("ids", part), "pass", f"{len(rows)} cells, the same in all three files", _SAME))
        frames.append(frame)
        matched.append(rows)
    if len(parts) > 1 and _attempt(checks, "train and test", "", _apart, frames, parts):
        checks.append(Check("train and test", "pass", "no cell in both", "no cell in both"))
    sides = _attempt(checks, "size of the windows", "", check_sides, parts, windows)
    scale = _attempt(checks, "scale", "", check_scale, frames, mpp, folder)
    if sides is None or scale is None:
        return None
    px = ", ".join(f"{side} px" for side in sides[0].values())
    stated = "not stated" if scale[0] is None else f"{scale[0]:g} um/px"
    for name, found, said in (("size of the windows", px, sides[1]), ("scale", stated, scale[1])):
        checks.append(Check(name, "warn" if said else "pass", found, "the study's", "; ".join(said)))
    return assemble(folder, parts, frames, matched, sides[0], scale[0], [])


def _apart(frames: list[pd.DataFrame], parts: list[Part]) -> bool:
    check_disjoint(frames, parts)
    return True


def _records(part: Part, checks: list[Check]) -> pd.DataFrame | None:
    """Read the annotations of one folder and check their fields."""
    name = _named("annotations", part)
    frame = _attempt(checks, name, "one object, cell id -> record", _placed, part)
    if frame is None:
        return None
    first = peek_annotations(part.annotations)
    lacking = [name for name in FIELDS if name not in first]
    unlabelled = int((frame[LABEL] == "").sum())
    odd = [f"the first record lacks {', '.join(lacking)}"] if lacking else []
    odd += [f"{unlabelled} cells have no label"] if unlabelled else []
    classes = frame.loc[frame[LABEL] != "", LABEL].nunique()
    found = f"{len(frame)} records, {classes} classes"
    expected = f"the {len(FIELDS)} fields of the original"
    checks.append(Check(name, "warn" if odd else "pass", found, expected, "; ".join(odd)))
    return frame


def _placed(part: Part) -> pd.DataFrame:
    frame = read_annotations(part.annotations)
    check_positions(frame, part)
    return frame


def _named(name: str, part: Part) -> str:
    return f"{name} of {part.folder.name}/" if part.split else name


def _draw(cells: int, sample: int, seed: int) -> NDArray[np.int64]:
    if not sample or sample >= cells:
        return np.arange(cells)
    return np.sort(np.random.default_rng(seed).choice(cells, sample, replace=False)).astype(np.int64)


def _batches(trio: Trio, role: str, chosen: NDArray[np.int64], name: str) -> Any:
    """Yield places and stored windows of the chosen cells, neighbours together."""
    side = trio.sides[role]
    step = max(_BATCH_BYTES // (side * side * 3), 1)
    xy = trio.cells[["centroid_x", "centroid_y"]].to_numpy(np.float64)[chosen]
    order = chosen[locality_order(np.zeros(len(chosen)), xy)]
    with Progress(len(order), name, "windows") as progress:
        for start in range(0, len(order), step):
            places = order[start : start + step]
            yield places, trio.read(role, places)
            progress.advance(len(places))


def _check_look(trio: Trio, chosen: NDArray[np.int64]) -> list[Check]:
    """Look for windows that cannot be pictures of tissue: black, black at the edge, twice the same."""
    checks = []
    ids = trio.rows[CELL_ID].to_numpy()
    for role in ROLES:
        black: list[int] = []
        edged: list[int] = []
        double: list[int] = []
        seen: dict[bytes, int] = {}
        try:
            for places, images in _batches(trio, role, chosen, f"Look of the {role} windows"):
                empty = ~images.any(axis=(1, 2, 3))
                black += places[empty].tolist()
                edged += places[_black_edge(images) & ~empty].tolist()
                for place, image in zip(places.tolist(), images, strict=True):
                    if (image == image[0, 0]).all():
                        continue
                    digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                    if seen.setdefault(digest, place) != place:
                        double.append(place)
        except UserError as error:
            checks.append(
                Check(f"{role} windows", "fail", f"{error.what}: {error.found}", "readable", str(error.where))
            )
            continue
        of = f"of {len(chosen)} looked at"
        rules: tuple[tuple[str, list[int], Verdict, str], ...] = (
            ("black", black, "fail", "rows that the original's writer failed on are left black; leave them out"),
            ("black edges", edged, "warn", "the original pads with black, this study with white"),
            ("double", double, "warn", "the same picture under two ids: two nuclei in one px, or a faulty file"),
        )
        for name, bad, verdict, why in rules:
            found = f"{len(bad)} {of}" if bad else f"none {of}"
            detail = f"{', '.join(map(str, ids[bad[:_SHOWN]]))}: {why}" if bad else ""
            checks.append(Check(f"{name} {role} windows", verdict if bad else "pass", found, "none", detail))
    return checks


def _black_edge(images: Image) -> NDArray[np.bool_]:
    """Tell for each window whether one of its four edge lines is all zero."""
    lines = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    dark = np.stack([~line.any(axis=(1, 2)) for line in lines])
    return np.asarray(dark.any(axis=0))


def _against_store(
    trio: Trio, chosen: NDArray[np.int64], store: SlideStore, cells: pd.DataFrame, windows: Mapping[str, int]
) -> list[Check]:
    """Compare ids, places and pixels with the slide."""
    import pandas as pd

    kept = cells[cells["status"] == KEPT] if "status" in cells else cells
    where = pd.Index(kept[CELL_ID].astype(str)).get_indexer(pd.Index(trio.rows[CELL_ID]))
    expected = "every cell among the kept cells of the slide"
    if (where < 0).any():
        lost = trio.rows[CELL_ID].to_numpy()[where < 0]
        detail = f"such as {', '.join(map(str, lost[:_SHOWN]))}"
        return [Check("cells of the slide", "fail", f"{len(lost)} of {len(where)} are not", expected, detail)]
    checks = [Check("cells of the slide", "pass", f"all {len(where)} are", expected)]
    xy = kept[["x_px", "y_px"]].to_numpy(np.float64)[where]
    off = np.abs(trio.cells[["centroid_x", "centroid_y"]].to_numpy(np.float64) - xy).max(axis=1)
    far = int((off > _SAME_PLACE_PX).sum())
    found = f"{far} of {len(off)} elsewhere, up to {off.max():.2f} px" if far else f"all {len(off)} the same"
    checks.append(Check("places against the slide", "fail" if far else "pass", found, "centroid = x_px, y_px"))
    for role in ROLES:
        side, size = trio.sides[role], windows[role]

        def cut(places: NDArray[np.int64], side: int = side, size: int = size) -> Image:
            return shrink(store.windows(xy[places], size), side)

        def padded(places: NDArray[np.int64], side: int = side, size: int = size) -> NDArray[np.bool_]:
            return _off_slide(xy[places], size, side, store.shape)

        checks.append(_compare(trio, role, chosen, cut, f"{role} pixels against the slide", padded))
    return checks


def _against_trio(trio: Trio, other: Trio, chosen: NDArray[np.int64]) -> list[Check]:
    """Compare ids, labels, places and pixels with those of another data set."""
    import pandas as pd

    mine, theirs = pd.Index(trio.rows[CELL_ID]), pd.Index(other.rows[CELL_ID])
    where = theirs.get_indexer(mine)
    alone = int((where < 0).sum()), int((mine.get_indexer(theirs) < 0).sum())
    expected = "the same cells"
    if any(alone):
        odd = [*mine[where < 0][:_SHOWN], *theirs[mine.get_indexer(theirs) < 0][:_SHOWN]]
        detail = f"such as {', '.join(odd[:_SHOWN])}"
        found = f"{alone[0]} cells only here, {alone[1]} only there"
        return [Check("cells of the other data set", "fail", found, expected, detail)]
    checks = [Check("cells of the other data set", "pass", f"the same {len(mine)}", expected)]
    here, there = trio.cells[LABEL].to_numpy(), other.cells[LABEL].to_numpy()[where]
    differ = here != there
    detail = f"{mine[differ][0]}: {here[differ][0]} and {there[differ][0]}" if differ.any() else ""
    found = f"{int(differ.sum())} of {len(mine)} differ" if differ.any() else "all the same"
    verdict: Verdict = "fail" if differ.any() else "pass"
    checks.append(Check("labels of the other data set", verdict, found, "the same", detail))
    for role in ROLES:
        name = f"{role} pixels against the other data set"
        if trio.sides[role] != other.sides[role]:
            sides = f"{trio.sides[role]} and {other.sides[role]} px"
            checks.append(Check(name, "skipped", "not compared", "", f"the windows have different sizes, {sides}"))
            continue

        def stored(places: NDArray[np.int64], role: str = role) -> Image:
            return other.read(role, where[places])

        checks.append(_compare(trio, role, chosen, stored, name))
    return checks


def _compare(
    trio: Trio,
    role: str,
    chosen: NDArray[np.int64],
    truth: Callable[[NDArray[np.int64]], Image],
    name: str,
    padded: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
) -> Check:
    """Compare stored windows with the true ones, pixel by pixel; ``padded`` tells what lies off the slide."""
    bad: list[int] = []
    black = 0
    largest = 0
    try:
        for places, images in _batches(trio, role, chosen, name):
            wanted = truth(places)
            unequal = np.flatnonzero((images != wanted).any(axis=(1, 2, 3)))
            if not len(unequal):
                continue
            got, true = images[unequal], wanted[unequal]
            if padded is not None:
                off = padded(places[unequal])
                only = (((got == true).all(-1)) | (off & ~got.any(-1))).all(axis=(1, 2))
                black += int(only.sum())
                got, true, unequal = got[~only], true[~only], unequal[~only]
            bad += places[unequal].tolist()
            if len(unequal):
                largest = max(largest, int(np.abs(got.astype(np.int16) - true).max()))
    except UserError as error:
        return Check(name, "fail", f"{error.what}: {error.found}", "equal to the last bit", str(error.where))
    of = f"of {len(chosen)} windows"
    if bad:
        shown = ", ".join(str(cell) for cell in trio.rows[CELL_ID].to_numpy()[sorted(bad)[:_SHOWN]])
        found = f"{len(bad)} {of} differ, by up to {largest} grey levels"
        return Check(name, "fail", found, "equal to the last bit", f"such as {shown}")
    if black:
        return Check(name, "warn", f"{black} {of} are padded with black, else equal", "padding with white")
    return Check(name, "pass", f"all {len(chosen)} equal to the last bit", "equal to the last bit")


def _off_slide(xy: NDArray[np.float64], size: int, side: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Tell for each pixel of stored windows, ``(N, side, side)``, whether it lies off the slide."""
    origins = window_origin(xy, size)
    step = size // side
    at = np.arange(side) * step
    x, y = origins[:, :1] + at, origins[:, 1:] + at
    out_x = (x < 0) | (x + step > shape[1])
    out_y = (y < 0) | (y + step > shape[0])
    return out_y[:, :, None] | out_x[:, None, :]
