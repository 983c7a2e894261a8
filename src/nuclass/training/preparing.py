"""What training needs of a study before it starts: cells, labels and splits of its slides, features of neighbourhoods.

For use without Snakemake: what a rule would make is made here by the same functions, where it is not there yet.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.log import get_logger
from nuclass.core.patch_rows import PATCHES, find_patches
from nuclass.core.protocol import Protocol, switches_of
from nuclass.data.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.training.config import Context

_log = get_logger(__name__)
CONTEXT_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Place:
    """Where a study lies.

    Attributes
    ----------
    config
        Its checked configuration.
    slides
        Its training slides: the sheet, indexed by slide, with ``organ``, ``source`` and ``path``.
    root
        The folder that paths of the sheet and the configuration start from.
    results, work
        Folders of results, and of the running state.
    """

    config: dict[str, Any]
    slides: pd.DataFrame
    root: Path
    results: Path = Path("results")
    work: Path = Path("work")

    def study(self, *slides: str) -> Study:
        """Return these slides, all without names, as the functions of training take them."""
        rows = [
            {"slide": slide, "organ": self.slides.loc[slide, "organ"], "windows": str(self.windows(slide))}
            for slide in slides or self.slides.index
        ]
        return Study(
            rows,
            self.results,
            mpp=self.config["mpp"],
            windows=self.config["windows"],
            cache_mb=self.config["slide_store"]["cache_mb"],
        )

    def windows(self, slide: str) -> Path:
        """Return what the windows of a slide are read from: its store, or the list of its patch files."""
        name = "patches.json" if self.slides.loc[slide, "source"] == PATCHES else "he.ome.zarr"
        return self.results / "slides" / slide / name

    def tables(self, slide: str) -> dict[str, Path]:
        """Return the tables of a slide that training reads."""
        return {
            "cells": self.results / "slides" / slide / "cells.parquet",
            "labels": self.results / "labels" / slide / "labels.parquet",
            "splits": self.results / "splits" / f"{slide}.parquet",
        }

    @property
    def context_folder(self) -> Path:
        """Folder of the context backbone that a study trains itself."""
        return self.results / "backbones" / "context"


def unprepared(place: Place) -> list[str]:
    """Return the slides of patch files whose cells, labels or split are not there, or older than the files.

    Raises
    ------
    UserError
        What belongs to a slide with an H&E image is missing; it is made by the workflow.
    """
    lacking: dict[str, Path] = {}
    stale = []
    for slide in map(str, place.slides.index):
        missing = [path for path in (place.windows(slide), *place.tables(slide).values()) if not path.exists()]
        if place.slides.loc[slide, "source"] == PATCHES:
            if missing or _changed(place, slide):
                stale.append(slide)
        elif missing:
            lacking[slide] = missing[0]
    if lacking:
        goals = " ".join(str(place.tables(slide)["splits"]) for slide in lacking)
        raise UserError(
            "What training needs of its slides is not there yet",
            where=place.results,
            found=f"of {len(lacking)} slides no " + next(iter(lacking.values())).name
            if len(lacking) > 1
            else f"no {next(iter(lacking.values()))}",
            expected="slide stores, cells, labels and splits: " + ", ".join(lacking),
            fix=f"run in the folder of the study: snakemake --cores 2 {goals}   (or name data sets of patch files in "
            "NUCLASS_DATA_DIRS)",
        )
    return stale


def prepare_slides(place: Place) -> None:
    """Take in the slides that come as patch files, label their cells and divide them, where that is not done yet."""
    from nuclass.labels.named import label_named_cells
    from nuclass.patches.importing import import_patches

    for slide in unprepared(place):
        tables = place.tables(slide)
        store = place.results / "slides" / slide / "he.ome.zarr"
        if store.exists():
            raise UserError(
                "There are results of a slide with an H&E image under this name",
                where=store,
                expected="a slide without results, or one of patch files",
                fix="set NUCLASS_RESULTS_ROOT to another folder",
            )
        import_patches(
            folder=place.root / place.slides.loc[slide, "path"],
            cells=tables["cells"],
            manifest=place.windows(slide),
            windows=place.config["windows"],
            mpp=place.config["mpp"],
            slide=slide,
        )
        label_named_cells(
            cells=tables["cells"],
            ontology=place.root / place.config["ontology"],
            out=tables["labels"].parent,
            name=slide,
        )
        _split(place, slide)


def features_to_make(
    place: Place, context: Context, protocol: Protocol, folder: Path | None = None, *, for_gate: bool
) -> list[Path]:
    """Return the files of features of neighbourhoods that are not there, slide by slide.

    Parameters
    ----------
    folder
        The backbone of a study that trained its own, where it is not at its usual place.
    for_gate
        Also those that the gate has of its own under ``smaller_gate_context``.

    Raises
    ------
    UserError
        There are features, or there is a trained backbone, that were made by other settings.
    """
    study = place.study()
    if context.pretrain is not None:
        _check_trained(folder or place.context_folder, context)
    lacking = []
    for slide in map(str, place.slides.index):
        files = [study.features(slide)] + ([study.views(slide)] if context.views else [])
        if all(file.is_file() for file in files):
            _check_settings(slide, study, context, protocol)
        else:
            lacking.append(files[0])
        if for_gate and protocol.smaller_gate_context and not study.gate_features(slide).is_file():
            lacking.append(study.gate_features(slide))
    return lacking


def _check_settings(slide: str, study: Study, context: Context, protocol: Protocol) -> None:
    """Raise where the features of a slide were made by other settings of the section ``context``."""
    from nuclass.data.features import read_key
    from nuclass.models.backbones import REGISTRY

    name = str(context.backbone.get("name"))
    wanted: dict[str, Any] = {
        "backbone": name,
        "pooling": context.pooling,
        "read_level": 0 if protocol.truncated_context else context.read_level,
        "window_px": study.windows["global"],
        "mpp": float(study.mpp),
        "truncated": protocol.truncated_context,
    }
    for key in ("input_px", "mean", "std"):
        value = context.backbone.get(key, getattr(REGISTRY.get(name), key, None))
        if value is not None:
            wanted[key] = value if key == "input_px" else tuple(round(float(item), 6) for item in value)
    found = {study.features(slide): wanted}
    if context.views:
        changes = {key: float(value) for key, value in asdict(context.augment).items() if key != "black_corners"}
        found[study.views(slide)] = {**wanted, "views": context.views, "augment": tuple(sorted(changes.items()))}
    for file, settings in found.items():
        made = read_key(file)
        wrong = [key for key, value in settings.items() if getattr(made, key) != value]
        if wrong:
            raise UserError(
                "The features of neighbourhoods were made by other settings",
                where=file,
                found=", ".join(f"{key} {getattr(made, key)}" for key in wrong),
                expected=", ".join(f"{key} {settings[key]}" for key in wrong),
                fix=f"delete {file.with_name('*.h5')}, or set NUCLASS_RESULTS_ROOT to another folder",
            )


def _check_trained(folder: Path, context: Context) -> None:
    """Raise where the context backbone that a study trained was trained by other settings."""
    from nuclass.training.composition import pretrain_settings
    from nuclass.training.state import differences

    made = read_json(folder / "metrics.json").get("settings") if (folder / "metrics.json").is_file() else None
    other = differences(made, pretrain_settings(context)) if made else []
    if other:
        raise UserError(
            "The context backbone of this study was trained by other settings",
            where=folder,
            found="changed since: context." + ", context.".join(other),
            expected="the settings it was trained by",
            fix=f"delete {folder} and the features made with it, or set NUCLASS_RESULTS_ROOT to another folder",
        )


def prepare_context(
    place: Place, context: Context, protocol: Protocol, seed: int, folder: Path | None = None, *, for_gate: bool = False
) -> Path | None:
    """Make the features of neighbourhoods that are missing; return the folder of a backbone that a study trains itself.

    That backbone is trained first, where it is not there yet. A pass that was stopped goes on where it was.

    Parameters
    ----------
    context, protocol, seed
        Settings of the section ``context``, the flaws that are on, the seed of views under augmentation.
    folder
        The backbone of a study that trained its own, where it is not at its usual place.
    for_gate
        See :func:`features_to_make`.
    """
    from nuclass.training.config import to_plain

    sections = {"context": to_plain(context)}
    lacking = features_to_make(place, context, protocol, folder, for_gate=for_gate)
    if context.pretrain is not None:
        folder = folder or place.context_folder
        if not all((folder / name).is_file() for name in CONTEXT_FILES):
            from nuclass.training.composition import pretrain_context

            pretrain_context(sections, place.study(), folder, place.work / "models" / "context", context.pretrain.seed)
    for number, file in enumerate(lacking, start=1):
        _log.info("Features of neighbourhoods: %s, %d of %d", file, number, len(lacking))
        _embed(place, context, protocol, seed, folder, file)
    return folder


def _embed(place: Place, context: Context, protocol: Protocol, seed: int, folder: Path | None, file: Path) -> None:
    """Make one file of features, as the rules embed_context, embed_training_context and embed_gate_context do."""
    from nuclass.training.config import to_plain
    from nuclass.training.context import embed_context

    slide = file.stem
    study = place.study(slide)
    of_gate = file == study.gate_features(slide)
    views = bool(context.views) and not of_gate
    stages = ["gate_context"] if of_gate else ["context", "views"] if views else ["context"]
    embed_context(
        {"context": to_plain(context), "protocol": switches_of(protocol, *stages)},
        study,
        file,
        place.work / "features" / file.parent.name / slide,
        folder=folder,
        views_out=study.views(slide) if views else None,
        seed=seed,
    )


def context_of(checkpoint: Path) -> tuple[Context, Path | None]:
    """Return the context settings that a global model was trained with, and the folder of its own backbone, if any."""
    from nuclass.core.names import GLOBAL
    from nuclass.training.checkpoint import load_checkpoint
    from nuclass.training.config import Context, from_plain

    data = load_checkpoint(checkpoint, GLOBAL)
    folder = data["context_folder"]
    return from_plain(Context, data["context"], str(checkpoint)), Path(folder) if folder else None


def need_checkpoints(paths: dict[str, Path], model: str) -> None:
    """Raise when a checkpoint that the training of ``model`` starts from is missing."""
    missing = {name: path for name, path in paths.items() if not path.is_file()}
    if missing:
        raise UserError(
            f"The {model} model is trained after the {' and the '.join(paths)} model",
            where=", ".join(map(str, missing.values())),
            found="no checkpoint of the " + " and of the ".join(missing) + " model",
            fix=f"run: {' && '.join(f'nuclass train {name}' for name in missing)}   (or name a checkpoint: "
            + " ".join(f"--{name} FILE" for name in missing)
            + ")",
        )


def need_writable(*folders: Path) -> None:
    """Raise where a folder that is written to at the end of a training cannot be: hours later would be late."""
    for folder in folders:
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UserError(
                "A folder of results cannot be written to",
                where=folder,
                found=f"{there} is {'not yours to write to' if there.is_dir() else 'a file'}",
                expected="a folder that can be made and written to",
                fix="correct --out, --work, NUCLASS_RESULTS_ROOT or NUCLASS_CHECKPOINT_ROOT",
            )


def _changed(place: Place, slide: str) -> bool:
    """Return whether the patch files, the ontology, or how windows are read changed since a slide was taken in."""
    from nuclass.patches.states import file_state

    manifest = read_json(place.windows(slide))
    noted = [file for part in manifest["parts"] for file in (part.get("annotations"), *part["files"].values()) if file]
    states = {file["path"]: {"size": file["size"], "mtime_ns": file["mtime_ns"]} for file in noted}
    folder = place.root / place.slides.loc[slide, "path"]
    paths = find_patches(folder, place.config["windows"]).paths
    ontology = place.root / place.config["ontology"]
    return (
        {str(path.absolute()): file_state(path) for path in paths} != states
        or manifest["windows"] != dict(place.config["windows"])
        or ontology.stat().st_mtime_ns > place.tables(slide)["labels"].stat().st_mtime_ns
    )


def _split(place: Place, slide: str) -> None:
    """Divide a training slide, as the rule split_cells does."""
    from nuclass.core.files import write_json, write_parquet
    from nuclass.splits import SplitConfig, read_cells, read_labels, split_cells
    from nuclass.splits.picture import draw_split

    tables = place.tables(slide)
    config = SplitConfig.from_config(place.config)
    cells, labels = read_cells(tables["cells"]), read_labels(tables["labels"])
    split = split_cells(cells, labels, config, "train", slide)
    write_json(tables["splits"].with_suffix(".json"), split.report)
    draw_split(
        tables["splits"].with_suffix(".png"), cells, split.frame["split"], split.report, config.window_px, config.mpp
    )
    write_parquet(tables["splits"], split.frame)
