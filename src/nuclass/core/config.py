"""The study: configuration and sheets, checked as a whole before any job starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError, closest
from nuclass.core.names import ORGANS
from nuclass.core.schema import check_settings, locator, raise_faults, read_yaml
from nuclass.core.sheets import Row, read_sheet

if TYPE_CHECKING:
    import pandas as pd

SCHEMAS = Path("config/schemas")
DATASETS = Path("resources/datasets.tsv")
SYNTHETIC_ORGANS = ("breast", "colon", "lung", "ovary", "pancreas")
# What the stages read of a bundle; one of each group must be there.
_BUNDLE_FILES = (
    ("experiment.xenium",),
    ("cells.parquet", "cells.csv.gz"),
    ("cell_feature_matrix.h5",),
    ("nucleus_boundaries.parquet", "nucleus_boundaries.csv.gz"),
)


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes
    ----------
    config
        The settings, with every default filled in.
    slides
        The sheet, indexed by slide; all values are text.
    models
        The settings of the models, with every default filled in.
    """

    config: dict[str, Any]
    slides: pd.DataFrame
    models: dict[str, Any]

    @property
    def train_slides(self) -> list[str]:
        """Slides the models learn from, in the order of the sheet."""
        return list(self.slides.index[self.slides["role"] == "train"])

    @property
    def cohorts(self) -> list[str]:
        """Slides that are held out, in the order of the sheet."""
        return list(self.slides.index[self.slides["role"] == "cohort"])


def merge_files(files: Sequence[str | Path], root: str | Path = ".") -> dict[str, Any]:
    """Read settings from files; sections are merged key by key and the last file wins."""
    merged: dict[str, Any] = {}
    for file in files:
        data = read_yaml(Path(root) / file)
        if not isinstance(data, dict):
            raise UserError("A configuration file is not a section of keys", where=file, found=repr(data)[:80])
        _merge(merged, data)
    return merged


def _merge(into: dict[str, Any], data: Mapping[str, Any]) -> None:
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def load_study(
    config: Mapping[str, Any],
    root: str | Path = ".",
    files: Sequence[str | Path] = (),
    schemas: str | Path | None = None,
    tables: Mapping[str, Callable[[Path], Any]] | None = None,
) -> Study:
    """Check a configuration with its sheets and tables; return the study or tell every fault at once.

    Parameters
    ----------
    config
        The settings, as merged from all files and the command line.
    root
        The folder that relative paths start from.
    files
        The files the settings came from, later ones winning; used to name file and line of a fault.
    schemas
        The folder of the schemas; by default ``config/schemas`` under ``root``.
    tables
        Readers of the tables the settings name, by key (such as ``ontology``); each raises a
        :class:`UserError` for a fault of its table.

    Raises
    ------
    UserError
        With all faults in one message.
    """
    import pandas as pd

    root = Path(root)
    schemas = Path(schemas) if schemas is not None else root / SCHEMAS
    for file in files:
        read_yaml(root / file)
    places = [root / file for file in files]
    locate = locator(places, "the command line (--config)" if places else "the configuration", config)
    checked, faults = check_settings(config, read_yaml(schemas / "config.schema.yaml"), locate)
    faults = faults or _check_numbers(checked, locate)
    rows, sheet_faults = _read_slides(root, checked.get("slides"), read_yaml(schemas / "slides.schema.yaml"))
    faults += sheet_faults
    models, model_faults = _read_models(root, checked, read_yaml(schemas / "models.schema.yaml"))
    faults += model_faults
    faults += _check_tables(root, checked, tables or {})
    raise_faults(faults, "The study's configuration cannot be used")
    slides = pd.DataFrame([row.values for row in rows]).set_index("slide")
    return Study(config=checked, slides=slides, models=models)


def load_settings(files: Sequence[str | Path], root: str | Path = ".") -> dict[str, Any]:
    """Return the checked settings of a study, without looking at its sheets and tables."""
    root = Path(root)
    merged = merge_files(files, root)
    locate = locator([root / file for file in files], "the configuration", merged)
    checked, faults = check_settings(merged, read_yaml(root / SCHEMAS / "config.schema.yaml"), locate)
    raise_faults(faults or _check_numbers(checked, locate), "The configuration cannot be used")
    return checked


def _check_numbers(config: Mapping[str, Any], locate: Any) -> list[UserError]:
    """Check settings, each valid by itself, against each other."""
    splits, windows, store = config["splits"], config["windows"], config["slide_store"]
    widest = max(windows.values()) * config["mpp"]
    faults = []
    if splits["val"] + splits["test"] >= 0.9:
        faults.append(
            UserError(
                "splits.val and splits.test leave too few cells to train on",
                where=locate(["splits", "val"]),
                found=f"{splits['val']} + {splits['test']}",
                expected="a sum below 0.9",
                fix="make one of them smaller",
            )
        )
    if splits["buffer_um"] < widest and splits["protocol"] == "corrected":
        faults.append(
            UserError(
                "splits.buffer_um is narrower than the largest window",
                where=locate(["splits", "buffer_um"]),
                found=f"{splits['buffer_um']:g} um",
                expected=f"at least {widest:g} um (windows.global x mpp), so that no window sees two splits",
                fix=f"set it to {widest:g}",
            )
        )
    if windows["local"] >= windows["global"]:
        faults.append(
            UserError(
                "the local window is not smaller than the global one",
                where=locate(["windows", "local"]),
                found=f"local {windows['local']} px, global {windows['global']} px",
                expected="local below global",
            )
        )
    if store["shard"] % store["tile"]:
        faults.append(
            UserError(
                "slide_store.shard is not a multiple of slide_store.tile",
                where=locate(["slide_store", "shard"]),
                found=f"shard {store['shard']} px, tile {store['tile']} px",
                expected="a multiple, such as 8 tiles",
            )
        )
    return faults


def _read_slides(root: Path, path: Any, schema: Mapping[str, Any]) -> tuple[list[Row], list[UserError]]:
    if not isinstance(path, str):
        return [], []
    columns = list(schema["properties"])
    rows, faults = read_sheet(root / path, columns, list(schema["required"]))
    for row in rows:
        faults += _row_faults(path, row, schema)
    faults += _across_rows(path, rows)
    datasets = _dataset_names(root)
    for row in rows:
        faults += _source_faults(root, path, row, datasets)
    return rows, faults


def _place(path: str, row: Row) -> str:
    return f"{path}, line {row.line} (slide '{row.values['slide']}')"


def _row_faults(path: str, row: Row, schema: Mapping[str, Any]) -> list[UserError]:
    _, faults = check_settings(row.values, schema, lambda at: f"{path}, line {row.line}")
    return [
        UserError(
            fault.what.replace("the value of", "the value of column", 1),
            where=_place(path, row),
            found=fault.found,
            expected=fault.expected,
            fix=fault.fix,
        )
        for fault in faults
    ]


def _across_rows(path: str, rows: Sequence[Row]) -> list[UserError]:
    faults = []
    seen: dict[str, int] = {}
    for row in rows:
        name = row.values["slide"]
        if name in seen:
            faults.append(
                UserError(
                    f"the slide '{name}' stands twice",
                    where=f"{path}, lines {seen[name]} and {row.line}",
                    expected="each slide once",
                    fix="delete one row, or give it another name",
                )
            )
        seen.setdefault(name, row.line)
    sides: dict[str, dict[str, Row]] = {}
    for row in rows:
        sides.setdefault(row.values["patient"], {}).setdefault(row.values["role"], row)
    for patient, by_role in sides.items():
        if patient and {"train", "cohort"} <= by_role.keys():
            train, cohort = by_role["train"], by_role["cohort"]
            faults.append(
                UserError(
                    f"the patient '{patient}' stands on both sides",
                    where=f"{path}, lines {train.line} and {cohort.line}",
                    found=f"'{train.values['slide']}' is for training, '{cohort.values['slide']}' is a cohort",
                    expected="all slides of a patient in one role: what a model learnt is no test of it",
                    fix="give both slides the same role, or correct the patient",
                )
            )
    roles = {row.values["role"] for row in rows}
    for role, text in (("train", "nothing to learn from"), ("cohort", "nothing held out to report on")):
        if rows and role not in roles:
            faults.append(
                UserError(
                    f"the sheet has no slide with role '{role}'",
                    where=path,
                    expected=f"at least one; without it there is {text}",
                )
            )
    return faults


def _dataset_names(root: Path) -> list[str] | None:
    if not (root / DATASETS).is_file():
        return None
    lines = (root / DATASETS).read_text(encoding="utf-8").splitlines()
    table = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    column = table[0].index("dataset") if table and "dataset" in table[0] else 0
    return [row[column] for row in table[1:]]


def _source_faults(root: Path, path: str, row: Row, datasets: list[str] | None) -> list[UserError]:
    values, where = row.values, _place(path, row)
    if values["source"] == "synthetic":
        real_only = values["organ"] in ORGANS and values["organ"] not in SYNTHETIC_ORGANS
        return [_no_such_tissue(values["organ"], where)] * real_only + [
            UserError(
                f"a synthetic slide takes no {column}",
                where=where,
                found=values[column],
                expected="an empty field",
                fix="empty it, or set source to 'local'",
            )
            for column in ("bundle", "he", "alignment")
            if values[column]
        ]
    if values["source"] == "dataset":
        if not values["bundle"]:
            return [UserError("a slide names no dataset", where=where, expected=f"a name of {DATASETS} in 'bundle'")]
        if datasets is not None and values["bundle"] not in datasets:
            near = closest(values["bundle"], datasets)
            return [
                UserError(
                    f"the dataset '{values['bundle']}' is not known.{near}",
                    where=where,
                    expected=f"a name of {DATASETS}",
                    fix="correct the name, or add the dataset with its addresses to that table",
                )
            ]
        return []
    return _local_faults(root, values, where) if values["source"] == "local" else []


def _no_such_tissue(organ: str, where: str) -> UserError:
    return UserError(
        "no synthetic tissue exists for an organ",
        where=where,
        found=organ,
        expected="one of " + ", ".join(SYNTHETIC_ORGANS),
        fix="choose one of these, or give a real slide",
    )


def _local_faults(root: Path, values: Mapping[str, str], where: str) -> list[UserError]:
    if not values["bundle"]:
        return [UserError("a local slide names no bundle", where=where, expected="its folder in the column 'bundle'")]
    folder = root / values["bundle"]
    if not folder.is_dir():
        return [
            UserError(
                "the folder of a bundle is missing",
                where=where,
                found=values["bundle"],
                expected="the unpacked output folder of the Xenium run, with experiment.xenium in it",
                fix="correct the column 'bundle'",
            )
        ]
    faults = [
        UserError(
            f"a bundle lacks {' or '.join(names)}",
            where=where,
            found=f"{values['bundle']} without it",
            expected="a complete Xenium output folder",
            fix="copy the file from the run's output",
        )
        for names in _BUNDLE_FILES
        if not any((folder / name).is_file() for name in names)
    ]
    for column in ("he", "alignment"):
        if not values[column]:
            faults.append(
                UserError(
                    f"a local slide names no {column}", where=where, expected=f"its file in the column '{column}'"
                )
            )
        elif not (root / values[column]).is_file():
            faults.append(
                UserError(
                    f"the file of column '{column}' is missing",
                    where=where,
                    found=values[column],
                    fix=f"correct the column '{column}'",
                )
            )
    if values["alignment"] and (root / values["alignment"]).is_file():
        faults += _alignment_faults(root / values["alignment"], values["alignment"], where)
    return faults


def _alignment_faults(file: Path, shown: str, where: str) -> list[UserError]:
    """Check the form of an alignment file: a 3x3 matrix, or Explorer's keypoints."""
    lines = [line for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
    cells = [[cell.strip() for cell in line.split(",")] for line in lines]
    if cells and {"fixedX", "fixedY", "alignmentX", "alignmentY"} <= set(cells[0]):
        return []
    try:
        matrix = [[float(cell) for cell in row] for row in cells]
        if [len(row) for row in matrix] == [3, 3, 3]:
            area = matrix[0][0] * matrix[1][1] - matrix[0][1] * matrix[1][0]
            if math.isfinite(sum(map(sum, matrix))) and area != 0:
                return []
            return [
                UserError(
                    "an alignment matrix cannot be inverted",
                    where=f"{where}, file {shown}",
                    found="numbers that are not finite, or a scale of 0",
                    expected="a matrix that leads from H&E px to morphology px",
                    fix="export the alignment again from Xenium Explorer",
                )
            ]
        widths = ", ".join(str(width) for width in sorted({len(row) for row in matrix}))
        found = f"{len(matrix)} rows of {widths} numbers" if matrix else "an empty file"
    except ValueError:
        found = f"text that is no number: {lines[0][:60]}"
    return [
        UserError(
            "an alignment file is not a 3x3 matrix",
            where=f"{where}, file {shown}",
            found=found,
            expected="three lines of three numbers separated by commas (H&E px to morphology px), or Xenium "
            "Explorer's keypoints with the columns fixedX, fixedY, alignmentX, alignmentY",
            fix="export the alignment again from Xenium Explorer",
        )
    ]


def _read_models(
    root: Path, config: Mapping[str, Any], schema: Mapping[str, Any]
) -> tuple[dict[str, Any], list[UserError]]:
    path = config.get("models")
    if not isinstance(path, str):
        return {}, []
    try:
        settings = read_yaml(root / path)
    except UserError as error:
        return {}, [error]
    if not isinstance(settings, dict):
        return {}, [UserError("the models' settings are not a section of keys", where=path, found=repr(settings)[:80])]
    return check_settings(settings, schema, locator([root / path], path))


def _check_tables(
    root: Path, config: Mapping[str, Any], readers: Mapping[str, Callable[[Path], Any]]
) -> list[UserError]:
    """Read each table once, so that a fault in it is told now and not hours later."""
    faults = []
    for key, read in readers.items():
        if isinstance(config.get(key), str):
            try:
                read(root / config[key])
            except UserError as error:
                faults.append(error)
    return faults
