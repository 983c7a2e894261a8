"""Which cells a model is trained on and chosen by, in the order they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import TEST, TRAIN, VAL
from nuclass.data.cells import load_cells
from nuclass.data.study import Study
from nuclass.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)


def load_training_cells(study: Study, test_as_val: bool = False) -> tuple[pd.DataFrame, pd.DataFrame, Vocabulary]:
    """Return the labelled train cells, the labelled val cells, and the vocabulary of the train cells.

    Cells of val whose class no training cell has are left out and counted in the log.

    Parameters
    ----------
    study
        The training slides.
    test_as_val
        A flaw of the original, see :class:`nuclass.core.protocol.Protocol`: the val cells are the test cells of every
        slide that has some (its own val cells are left out), else its val cells. Their ``split`` is ``val`` then, and
        the vocabulary has their classes too, also one that no train cell has.

    Raises
    ------
    UserError
        When a split is empty or training has fewer than two classes.
    """
    frame = by_place(load_cells(study.slides, study.results, (TRAIN, VAL, TEST) if test_as_val else (TRAIN, VAL)))
    if test_as_val:
        frame = _test_as_val(frame)
    names = ", ".join(row["slide"] for row in study.slides)
    for split in (TRAIN, VAL):
        if not (frame["split"] == split).any():
            raise UserError(
                f"There is no labelled cell in the split '{split}'",
                where=f"slides {names}",
                fix="check the labels' summary and the fractions under 'splits'",
            )
    train = frame[frame["split"] == TRAIN].reset_index(drop=True)
    vocabulary = Vocabulary.from_frame(train, unknown_organ=True)
    if len(vocabulary.classes) < 2:
        raise UserError(
            "Training needs at least two classes",
            where=f"slides {names}",
            found=f"only {vocabulary.classes[0]}",
            fix="check the labels' summary of these slides",
        )
    if test_as_val:
        vocabulary = replace(vocabulary, classes=Vocabulary.from_frame(frame).classes)
    val = known_classes(frame[frame["split"] == VAL], vocabulary, "val")
    if val.empty:
        raise UserError("No val cell has a class that training saw", where=f"slides {names}")
    _log.info("%d train and %d val cells, %d classes", len(train), len(val), len(vocabulary.classes))
    return train, val, vocabulary


def _test_as_val(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with the test cells of a slide in place of its val cells, where it has test cells."""
    import pandas as pd

    split = frame["split"].astype(str)
    tested = frame.loc[split == TEST, "slide"].unique()
    kept = frame[~((split == VAL) & frame["slide"].isin(tested))]
    _log.warning(
        "Cells that are reported on stop, choose and calibrate the models (protocol: test_as_val): test cells of %s",
        ", ".join(map(str, tested)) or "no slide, for none has any; val it is",
    )
    named = kept["split"].astype(str).replace(TEST, VAL)
    return kept.assign(split=named.astype(pd.CategoricalDtype([TRAIN, VAL]))).reset_index(drop=True)


def by_place(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows slide by slide, neighbours after each other, so that each tile is decoded about once."""
    from nuclass.patches.windows import locality_order, slide_codes

    _, codes = slide_codes(frame)
    return frame.iloc[locality_order(codes, frame[["x_px", "y_px"]].to_numpy())].reset_index(drop=True)


def known_classes(frame: pd.DataFrame, vocabulary: Vocabulary, what: str) -> pd.DataFrame:
    """Return the rows whose class the vocabulary has; the others are counted in the log."""
    unseen = ~frame["class"].isin(vocabulary.classes)
    if unseen.any():
        counts = ", ".join(
            f"{name} {n}" for name, n in frame.loc[unseen, "class"].astype(object).value_counts().items()
        )
        _log.warning("Left out of %s, because no training cell has their class: %s", what, counts)
    return frame[~unseen].reset_index(drop=True)
