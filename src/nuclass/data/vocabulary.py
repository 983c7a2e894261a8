"""Classes and organs as numbers, in an order that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError, closest

UNKNOWN = "unknown"
NO_LABEL = -1


@dataclass(frozen=True)
class Vocabulary:
    """Names of classes and organs; a name's number is its place in the tuple.

    Parameters
    ----------
    classes, organs
        Names, each once. If ``organs`` contains ``"unknown"``, organs that are not listed get its number.
    """

    classes: tuple[str, ...]
    organs: tuple[str, ...]

    def __post_init__(self) -> None:
        for what in ("classes", "organs"):
            names = tuple(str(name) for name in getattr(self, what))
            object.__setattr__(self, what, names)
            if not names or len(set(names)) != len(names):
                raise UserError(f"The {what} must be one or more different names", found=", ".join(names) or "none")

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, unknown_organ: bool = False) -> Vocabulary:
        """Take the sorted classes and organs that occur in a table of :func:`nuclass.data.load_cells`.

        ``unknown_organ`` puts ``"unknown"`` last, for models that are to meet other organs.
        """
        organs = sorted(set(frame["organ"].unique()) - {UNKNOWN})
        extra = (UNKNOWN,) if unknown_organ else ()
        return cls(tuple(sorted(set(frame["class"].unique()) - {""})), (*organs, *extra))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Vocabulary:
        """Undo :meth:`to_dict`."""
        return cls(tuple(data["classes"]), tuple(data["organs"]))

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, for a checkpoint or JSON."""
        return {"classes": list(self.classes), "organs": list(self.organs)}

    def only_known(self, names: pd.Series) -> pd.Series:
        """Return the classes with ``""`` in place of those that are not listed, as a categorical column."""
        return names.astype(pd.CategoricalDtype([*self.classes, ""])).fillna("")

    def encode_classes(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Return the number of each class; -1 for the empty name (a cell without a label).

        A column of :func:`nuclass.data.load_cells` takes no Python object a cell.
        """
        return self._encode(names, self.classes, "class", {"": NO_LABEL})

    def encode_organs(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Return the number of each organ."""
        default = self.organs.index(UNKNOWN) if UNKNOWN in self.organs else None
        return self._encode(names, self.organs, "organ", {}, default)

    def decode_classes(self, codes: Iterable[int]) -> list[str]:
        """Return the name of each class number; ``""`` for -1."""
        names = (*self.classes, "")
        return [names[int(code)] for code in codes]

    def decode_organs(self, codes: Iterable[int]) -> list[str]:
        """Return the name of each organ number."""
        return [self.organs[int(code)] for code in codes]

    @staticmethod
    def _encode(
        names: Iterable[str], known: tuple[str, ...], what: str, extra: dict[str, int], default: int | None = None
    ) -> NDArray[np.int64]:
        if not isinstance(names, pd.Series | pd.Categorical):
            names = np.asarray(list(names), dtype=object)
        codes, uniques = pd.factorize(names)
        numbers = {name: i for i, name in enumerate(known)} | extra
        bad = sorted(str(name) for name in uniques if name not in numbers)
        if (bad and default is None) or (len(codes) and codes.min() < 0):
            raise UserError(
                f"A name is no {what} of this model",
                found=(", ".join(bad) + closest(bad[0], list(known))) if bad else "an empty cell",
                expected=" | ".join(known),
                fix=f"correct the {what}, or train a model that knows it",
            )
        table = np.array([numbers.get(name, default) for name in uniques], dtype=np.int64)
        return table[codes] if len(codes) else np.empty(0, np.int64)
