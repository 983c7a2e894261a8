"""What the settings of the splits mean together: one set of checks for the study and for a single slide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nuclass.core.errors import UserError, closest

AUTO, BANDS, BLOCKS = "auto", "bands", "blocks"
LAYOUTS = (AUTO, BANDS, BLOCKS)
NO_HOLDOUT = "none"
_WHOLE_SLIDES = ("hold_out", "leave_out")


def within_slide(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of ``splits`` bears on the cut of one slide.

    Whole slides that are held out, and folds of them, change no slide's own cut, so they are left out: no slide
    is cut again for another fold.
    """
    kept = {key: value for key, value in splits.items() if key not in _WHOLE_SLIDES}
    if splits.get("hold_out", NO_HOLDOUT) != NO_HOLDOUT:
        kept |= {"folds": 0, "fold": 1}
    return kept


def split_faults(
    splits: Mapping[str, Any],
    window_um: float,
    mpp: float,
    locate: Callable[[Sequence[str]], Any],
    no_buffer: bool = False,
) -> list[UserError]:
    """Return every fault of the section ``splits``.

    Parameters
    ----------
    splits
        The section with all its keys; those of whole slides may be missing.
    window_um
        Side of the largest window in micrometres.
    mpp
        Micrometres per px of the slide store.
    locate
        Gives the place of a key, from its path.
    no_buffer
        Whether this flaw of the released protocol is on, see :class:`nuclass.core.protocol.Protocol`.
    """

    def fault(key: str, what: str, found: object, expected: str, fix: str | None = None) -> UserError:
        return UserError(what, where=locate(["splits", key]), found=found, expected=expected, fix=fix)

    within = within_slide(splits)
    return [
        *_unknown_words(within, fault),
        *_share_faults(within, fault),
        *_width_faults(within, window_um, mpp, no_buffer, fault),
        *_fold_faults(splits, within, fault),
        *_box_faults(within, no_buffer, fault),
        *_holdout_faults(splits, fault),
    ]


_Fault = Callable[..., UserError]


def _unknown_words(splits: Mapping[str, Any], fault: _Fault) -> list[UserError]:
    layout = splits["layout"]
    if layout in LAYOUTS:
        return []
    what = f"the value of splits.layout is not known.{closest(str(layout), list(LAYOUTS))}"
    return [fault("layout", what, layout, " | ".join(LAYOUTS))]


def _share_faults(splits: Mapping[str, Any], fault: _Fault) -> list[UserError]:
    if splits["folds"]:
        return []
    val, test = splits["val"], splits["test"]
    if 0 < val < 1 and 0 <= test < 1 and val + test < 0.9:
        return []
    return [
        fault(
            "val",
            "splits.val and splits.test leave too few cells to train on",
            f"{val} + {test}",
            "val above 0, test 0 or more, a sum below 0.9",
            "make one of them smaller",
        )
    ]


def _width_faults(
    splits: Mapping[str, Any], window_um: float, mpp: float, no_buffer: bool, fault: _Fault
) -> list[UserError]:
    faults = []
    if splits["buffer_um"] < window_um and not no_buffer:
        faults.append(
            fault(
                "buffer_um",
                "splits.buffer_um is narrower than the largest window",
                f"{splits['buffer_um']:g} um",
                f"at least {window_um:g} um (windows.global x mpp), so that no window sees two splits",
                f"set it to {window_um:g}",
            )
        )
    least = 2 * (max(splits["buffer_um"], window_um) + mpp)
    if splits["layout"] == BLOCKS and splits["block_um"] <= least:
        faults.append(
            fault(
                "block_um",
                "splits.block_um is too small: buffers from two sides would leave nothing of a block",
                f"{splits['block_um']:g} um",
                f"more than {least:g} um, twice the buffer",
                f"set it to {max(1500, 3 * least):g}, or leave layout to auto",
            )
        )
    return faults


def _fold_faults(splits: Mapping[str, Any], within: Mapping[str, Any], fault: _Fault) -> list[UserError]:
    folds, fold = splits["folds"], splits["fold"]
    faults = []
    if folds == 1 or folds < 0:
        faults.append(
            fault(
                "folds", "one fold leaves nothing to train on", folds, "2 or more; 0 for none", "set it to 5, or to 0"
            )
        )
    elif not 1 <= fold <= max(folds, 1):
        expected = f"1 to {folds}, the number of folds" if folds else "1, for splits.folds is 0"
        faults.append(fault("fold", "splits.fold is no fold", fold, expected))
    if within["folds"] and splits["test"]:
        faults.append(
            fault(
                "test",
                "splits.test must be 0 with splits.folds: every cell is validated on once, none is left for a test",
                splits["test"],
                "0",
                "set it to 0, and hold out whole slides (role cohort) for the test",
            )
        )
    return faults


def _box_faults(within: Mapping[str, Any], no_buffer: bool, fault: _Fault) -> list[UserError]:
    if not no_buffer or not (within["folds"] or within["layout"] != AUTO):
        return []
    return [
        fault(
            "folds" if within["folds"] else "layout",
            "the released protocol (no_buffer) cuts every slide by its one central box",
            f"layout {within['layout']}, folds {within['folds']}",
            "layout auto and folds 0 with it",
            "leave out these keys, or set protocol: {no_buffer: false}",
        )
    ]


def _holdout_faults(splits: Mapping[str, Any], fault: _Fault) -> list[UserError]:
    by, named, folds = splits.get("hold_out", NO_HOLDOUT), splits.get("leave_out", []), splits["folds"]
    if by == NO_HOLDOUT:
        return [
            fault(
                "leave_out",
                "splits.leave_out names what to hold out, but splits.hold_out is none",
                ", ".join(map(str, named)),
                "hold_out: slide, patient or organ, or no names",
            )
        ] * bool(named)
    if bool(named) == bool(folds):
        return [
            fault(
                "hold_out",
                f"splits.hold_out is {by}, and "
                + ("names and folds both say which" if named else f"nothing says which {by}"),
                f"leave_out {list(named)}, folds {folds}",
                "either leave_out with names, or folds and fold",
                "take away one of the two" if named else "set leave_out: [NAME], or folds: 3 and fold: 1",
            )
        ]
    return []
