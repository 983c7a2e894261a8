"""Make a data set ready to be predicted: its cells, their classes by the study's table, its context features."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256, write_json, write_parquet
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, GATE, GLOBAL, LABELLED, TEST, VAL
from nuclass.core.patch_rows import PARTS, find_patches
from nuclass.data.study import Study
from nuclass.evaluation.holdouts import STORE, Holdout

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.evaluation.leak import Seen

_log = get_logger(__name__)
_STATE = "inputs.json"


@dataclass(frozen=True)
class Prepared:
    """A data set whose cells and classes are known.

    Attributes
    ----------
    holdout
        What the list says of it.
    study
        Its one slide, with the paths of its tables.
    slide, patient
        What it is called in its files; ``""`` for a donor that is not told.
    key
        What its cells, classes and windows depend on.
    labels
        Cells, cells with a class, classes and their cells, and labels that the table does not know (``unmapped``).
    """

    holdout: Holdout
    study: Study
    slide: str
    patient: str
    key: dict[str, Any]
    labels: dict[str, Any]


def prepare(
    holdout: Holdout,
    work: Path,
    *,
    windows: Mapping[str, int],
    mpp: float,
    ontology: Path,
    seen: Mapping[str, Seen],
    cache_mb: int = 64,
) -> Prepared:
    """Take in the cells and labels of a data set, where that is not done yet or its files changed.

    Parameters
    ----------
    work
        Folder for the tables; what lies there of other files is removed.
    windows, mpp
        Of the model.
    ontology
        The table of names and classes: one for all models, so that all evaluate the same cells.
    seen
        What each model says of itself, so that a slide that it was trained on is called by the same name.

    Raises
    ------
    UserError
        The files do not fit each other or the model, or no label is known.
    """
    make = _of_study if holdout.of_study else _of_patches
    return make(holdout, Path(work), windows, mpp, ontology, seen, cache_mb)


def cells_of(prepared: Prepared) -> pd.DataFrame:
    """Return the labelled cells that are predicted, see :func:`nuclass.data.load_cells`."""
    from nuclass.data import load_cells

    return load_cells(prepared.study.slides, prepared.study.results, (VAL, TEST))


def _of_patches(
    holdout: Holdout,
    work: Path,
    windows: Mapping[str, int],
    mpp: float,
    ontology: Path,
    seen: Mapping[str, Seen],
    cache_mb: int,
) -> Prepared:
    """Take in a data set of patch files."""
    from nuclass.labels.named import label_named_cells
    from nuclass.patches.annotations import peek_annotations
    from nuclass.patches.importing import import_patches
    from nuclass.patches.states import patch_states

    (files,) = find_patches(holdout.root, windows).files.values()
    first = peek_annotations(files["annotations"])
    slide = _slide_name(holdout, str(first.get("slide_id") or ""), seen)
    key = {
        "files": patch_states([path.absolute() for path in files.values()]),
        "ontology": sha256(ontology),
        "windows": dict(windows),
        "mpp": mpp,
        "slide": slide,
    }
    tables = {name: work / f"{name}.parquet" for name in ("cells", "labels", "splits")}
    manifest, state = work / "patches.json", work / _STATE
    if not state.is_file() or read_json(state) != key:
        shutil.rmtree(work, ignore_errors=True)
        import_patches(
            folder=holdout.root,
            cells=tables["cells"],
            manifest=manifest,
            windows=windows,
            mpp=mpp,
            slide=holdout.name,
        )
        labels = label_named_cells(cells=tables["cells"], ontology=ontology, out=work, name=holdout.name)
        write_parquet(tables["splits"], labels[[CELL_ID]].assign(split=TEST))
        write_json(state, key)
    row = {"slide": slide, "organ": holdout.organ, "windows": str(manifest)}
    row |= {name: str(path) for name, path in tables.items()}
    study = Study([row], work, mpp=mpp, windows=dict(windows), cache_mb=cache_mb)
    summary = read_json(work / "summary.json")
    labels_told = {**_counted(tables["labels"]), "unmapped": summary["unmapped"]}
    return Prepared(holdout, study, slide, str(first.get("patient_id") or ""), key, labels_told)


def _of_study(
    holdout: Holdout,
    work: Path,
    windows: Mapping[str, int],
    mpp: float,
    ontology: Path,
    seen: Mapping[str, Seen],
    cache_mb: int,
) -> Prepared:
    """Take a slide's results of this workflow as they are; its labels are of the study's table already."""
    from nuclass.patches.states import file_state
    from nuclass.training.inputs import source_digest

    root = holdout.root.resolve()
    results, slide = root.parent.parent, root.name
    tables = {
        "cells": root / "cells.parquet",
        "labels": results / "labels" / slide / "labels.parquet",
        "splits": results / "splits" / f"{slide}.parquet",
    }
    missing = [str(path) for path in tables.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"The slide of '{holdout.name}' has no labels or no split",
            where=holdout.root,
            found="no " + ", no ".join(missing),
            expected="a slide's folder in the results of a study, results/slides/NAME, with its labels and split",
            fix=f"run in the folder of that study: snakemake results/splits/{slide}.parquet",
        )
    source = root / STORE if (root / STORE).exists() else root / "patches.json"
    key = {
        "files": {str(path): file_state(path) for path in tables.values()},
        "pixels": source_digest(source),
        "windows": dict(windows),
        "mpp": mpp,
        "slide": slide,
    }
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / _STATE, key)
    row = {"slide": slide, "organ": holdout.organ, "windows": str(source)}
    row |= {name: str(path) for name, path in tables.items()}
    study = Study([row], results, mpp=mpp, windows=dict(windows), cache_mb=cache_mb)
    return Prepared(holdout, study, slide, "", key, {**_counted(tables["labels"]), "unmapped": []})


def _slide_name(holdout: Holdout, told: str, seen: Mapping[str, Seen]) -> str:
    """Return what to call a slide: as a training slide where its files or folders are called so, else as its files do.

    Data sets that models were trained on are known by the names of their folders.
    """
    folder = holdout.root.resolve()
    above = [folder.parent.name] if folder.name in PARTS else []
    trained = {slide for one in seen.values() for ids in one.cells.values() for slide in ids}
    for name in (told, folder.name, *above, holdout.name):
        for spelling in (name, _plain(name)):
            if spelling and spelling in trained:
                return spelling
    return _plain(told) or holdout.name


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_.-")


def _counted(labels: Path) -> dict[str, Any]:
    """Return numbers of cells of a table of labels."""
    import pandas as pd

    table = pd.read_parquet(labels, columns=["class", "status"])
    classes = table.loc[(table["status"] == LABELLED) & (table["class"].fillna("") != ""), "class"].astype(str)
    counts = {str(name): int(n) for name, n in classes.value_counts().sort_index().items()}
    return {"cells": len(table), "with_class": len(classes), "classes": counts}


def context_features(
    prepared: Prepared,
    work: Path,
    checkpoints: Mapping[str, Path],
    data: Mapping[str, dict[str, Any]],
    *,
    accelerator: str,
    batch_size: int | None,
) -> Prepared:
    """Return a data set with the features of neighbourhoods of its cells; see :func:`with_context`."""
    study = with_context(
        prepared.study,
        work,
        checkpoints,
        data,
        accelerator=accelerator,
        batch_size=batch_size,
        there=_of_the_study(prepared, data[GLOBAL]["features"]),
    )
    return replace(prepared, study=study)


def with_context(
    study: Study,
    work: Path,
    checkpoints: Mapping[str, Path],
    data: Mapping[str, dict[str, Any]],
    *,
    accelerator: str,
    batch_size: int | None,
    precision: str | None = None,
    workers: int | None = None,
    there: Path | None = None,
    frame: pd.DataFrame | None = None,
) -> Study:
    """Compute the features of neighbourhoods that the global model and the gate read, where they are not there yet.

    A pass that was killed goes on. The backbone is the one that the global model was trained with.

    Parameters
    ----------
    study
        One slide.
    work
        Folder for the features and the running state.
    checkpoints, data
        Paths and contents of the checkpoints, ``global`` among them.
    accelerator, batch_size, precision, workers
        Device; windows at once; number format; processes that cut windows. None as in training.
    there
        Features of this kind that are there already.
    frame
        The cells; None takes the labelled ones of the study's tables.

    Returns
    -------
    The study, whose slide names its features.
    """
    wide = data[GLOBAL]
    smaller = bool(data.get(GATE, {}).get("protocol", {}).get("smaller_gate_context"))
    paths = {"features": there or _feature_file(work, wide["features"])}
    if smaller:
        paths["gate_features"] = _feature_file(work, data[GATE]["features"])
    (row,) = study.slides
    study = replace(study, slides=[{**row, **{name: str(path) for name, path in paths.items()}}])
    for name, path in paths.items():
        if not path.is_file():
            sections = _sections(wide, accelerator, batch_size, precision, workers, smaller=name == "gate_features")
            folder = context_folder(wide, checkpoints[GLOBAL])
            _embed(sections, study, path, work / f"{path.stem}_work", folder, frame)
    return study


def _of_the_study(prepared: Prepared, features: Mapping[str, Any]) -> Path | None:
    """Return the features that a study computed for its slide, if they are of this kind."""
    from nuclass.data.features import FeatureKey, read_key

    file = prepared.study.results / "features" / "context" / f"{prepared.slide}.h5"
    if not prepared.holdout.of_study or not file.is_file():
        return None
    return file if read_key(file) == FeatureKey.from_dict(dict(features), "the checkpoint") else None


def _feature_file(work: Path, features: Mapping[str, Any]) -> Path:
    """Return the file of features of one kind; those of another backbone have another name."""
    from nuclass.data.features import FeatureKey

    digest = FeatureKey.from_dict(dict(features), "the checkpoint").digest
    return work / f"context_{digest[:12]}.h5"


def _sections(
    wide: dict[str, Any],
    accelerator: str,
    batch_size: int | None,
    precision: str | None,
    workers: int | None,
    *,
    smaller: bool,
) -> dict[str, dict[str, Any]]:
    """Return the settings by which the global model's features were computed, without views."""
    context = {**wide["context"], "views": 0, "accelerator": accelerator}
    context["batch_size"] = min(context["batch_size"], batch_size or context["batch_size"])
    context |= {name: value for name, value in (("precision", precision), ("workers", workers)) if value is not None}
    on = {"smaller_gate_context": smaller, "truncated_context": bool(wide["features"].get("truncated"))}
    return {"context": context, "protocol": {name: True for name, value in on.items() if value}}


def _embed(
    sections: dict[str, Any],
    study: Study,
    path: Path,
    work: Path,
    folder: Path | None,
    frame: pd.DataFrame | None = None,
) -> None:
    from nuclass.training.context import embed_context

    embed_context(sections, study, path, work, folder=folder, frame=frame)


def context_folder(wide: Mapping[str, Any], checkpoint: Path) -> Path | None:
    """Return the folder of the context backbone of a study that trained its own; None for one of the settings.

    It stands in the checkpoint as training knew it. A relative one starts from the current folder, else from a folder
    above the checkpoint: that of the study.
    """
    told = wide.get("context_folder")
    if not told:
        return None
    folder = Path(told)
    places = [folder, *(above / folder for above in Path(checkpoint).resolve().parents[:5])]
    places.append(Path(checkpoint).resolve().parent.parent / "context")
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise UserError(
        "The context backbone that the global model was trained with is not there",
        where=checkpoint,
        found=f"nothing at {folder}, from here and from the folders above the checkpoint",
        expected="the folder results/backbones/context of the study, with config.json and model.safetensors",
        fix="start the command in the folder of the study, or copy its backbones/context beside the models",
    )
