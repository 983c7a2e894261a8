"""One table from raw labels to the study's classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nuclass.core.errors import UserError, closest

CLASSES = (
    "Acinar",
    "B_Cell",
    "Cardiomyocyte",
    "Ductal",
    "Endocrine",
    "Endothelial",
    "Endothelial_TumorAssociated",
    "Epithelial_Airway",
    "Epithelial_Alveolar",
    "Epithelial_Malignant",
    "Fibroblast",
    "Macrophage",
    "Mast_Cell",
    "Smooth_Muscle",
    "T_Cell",
    "Tumor_Associated_Fibroblast",
)
"""The 16 classes of the study, in the order of a full model's output."""

COLUMNS = ("raw_label", "class", "note")


@dataclass(frozen=True)
class Ontology:
    """Raw label to class; an empty class means that the label is left out, for the reason in ``notes``."""

    classes: dict[str, str]
    notes: dict[str, str]

    def map(self, raw: pd.Series) -> tuple[pd.Series, dict[str, int]]:
        """Map raw labels to classes.

        Returns
        -------
        The classes ("" where a label is left out or unknown), and the unknown labels with their counts.
        """
        raw = raw.fillna("").astype(str)
        unknown = raw[(raw != "") & ~raw.isin(list(self.classes))].value_counts()
        return raw.map(self.classes).fillna(""), {str(name): int(count) for name, count in unknown.items()}


def load_ontology(path: str | Path) -> Ontology:
    """Read an ontology (tab-separated: raw_label, class, note).

    Raises
    ------
    UserError
        Where a column is missing, a label stands twice with two classes, or a class is not one of the study's.
    """
    file = Path(path)
    if not file.exists():
        raise UserError("The ontology is missing", where=file, fix="check the key 'ontology' of the configuration")
    table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in table]:
        raise UserError(
            "The ontology lacks columns", where=file, found=", ".join(table.columns), expected=", ".join(COLUMNS),
            fix=f"add {', '.join(missing)}",
        )  # fmt: skip
    for row, name in enumerate(table["class"], start=2):
        if name and name not in CLASSES:
            raise UserError(
                "A class of the ontology is not one of the study's",
                where=f"{file}, row {row}, column class",
                found=name,
                expected="one of " + ", ".join(CLASSES),
                fix=f"correct the name, or leave it empty to leave the label out.{closest(name, list(CLASSES))}",
            )
    doubled = table[table["raw_label"].duplicated(keep=False)]
    for name, group in doubled.groupby("raw_label"):
        if group["class"].nunique() > 1:
            raise UserError(
                "A raw label has two classes",
                where=f"{file}, rows {', '.join(str(i + 2) for i in group.index)}",
                found=f"'{name}': {', '.join(group['class'])}",
                expected="one class a label",
                fix="keep one of the rows",
            )
    return Ontology(
        dict(zip(table["raw_label"], table["class"], strict=True)),
        dict(zip(table["raw_label"], table["note"], strict=True)),
    )
