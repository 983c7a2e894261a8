"""The study: configuration and sheets, checked as a whole before any job starts."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError, closest
from nuclass.core.holdout import apply_holdout
from nuclass.core.models_file import models_locator, read_models_file
from nuclass.core.own_files import home, own_file
from nuclass.core.patch_rows import PATCHES
from nuclass.core.protocol import Protocol, parse_protocol, to_setting
from nuclass.core.schema import check_settings, locator, raise_faults, read_yaml
from nuclass.core.slides_sheet import read_slides
from nuclass.core.split_settings import NO_HOLDOUT, split_faults
from nuclass.core.variants import Variants, build_variants, unshared

if TYPE_CHECKING:
    import pandas as pd

SCHEMAS = Path("config/schemas")
DEFAULTS = Path("config/config.yaml")


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes
    ----------
    config
        The settings, with every default filled in.
    slides
        The sheet, indexed by slide; all values are text. ``role`` is as used, with what ``splits.hold_out`` holds
        out; ``sheet_role`` as written.
    models
        The settings of the models, with every default filled in.
    protocol
        Which of the original's flaws are on.
    short_models
        The settings of the models of ablations: the study's, with what the section ``ablations`` of their file changes.
    """

    config: dict[str, Any]
    slides: pd.DataFrame
    models: dict[str, Any]
    protocol: Protocol = field(default_factory=Protocol)
    short_models: dict[str, Any] = field(default_factory=dict)

    @property
    def train_slides(self) -> list[str]:
        """Slides the models learn from, in the order of the sheet."""
        return list(self.slides.index[self.slides["role"] == "train"])

    @property
    def variants(self) -> Variants:
        """The runs of the training under changed settings that ``ablations`` asks for."""
        return self.plan_variants()

    @property
    def cuts_windows(self) -> bool:
        """Whether windows of any slide are cut here; else all slides come as files of windows."""
        return bool((self.slides["source"] != PATCHES).any())

    def plan_variants(self, **more: Any) -> Variants:
        """Return the variants; ``more`` goes to :func:`nuclass.core.variants.build_variants`."""
        organs = {slide: str(self.slides.loc[slide, "organ"]) for slide in self.train_slides}
        return build_variants(
            self.config["ablations"],
            models=self.models,
            short_models=self.short_models,
            protocol=self.protocol,
            windows=self.config["windows"],
            organs=organs,
            cohort_organs=[str(organ) for organ in self.slides.loc[self.cohorts, "organ"]],
            test=self.config["splits"]["test"],
            cut=self.cuts_windows,
            **more,
        )

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


def settings_of_module(given: Mapping[str, Any], root: str | Path = ".") -> dict[str, Any]:
    """Return the settings of a study that another workflow defines, laid over those of the demo study.

    Parameters
    ----------
    given
        The settings that the other workflow hands over; sections are merged key by key.
    root
        Its folder. Files that come along (ontology, markers, models) may be named as in the repository without being
        there; the sheet of slides and a marker table of one's own may only where ``given`` does not name them.
    """
    settings = merge_files([home() / DEFAULTS])
    _merge(settings, copy.deepcopy(dict(given)))
    along = ["ontology", "markers", "models", *(["slides"] if "slides" not in given else [])]
    settings |= {key: _found(settings[key], root) for key in along if isinstance(settings[key], str)}
    labels, of_labels = settings["labels"], given.get("labels")
    if isinstance(labels, dict) and not (isinstance(of_labels, dict) and "extra_markers" in of_labels):
        labels["extra_markers"] = _found(labels["extra_markers"], root)
    return settings


def _found(name: str, root: str | Path) -> str:
    place = own_file(name, root)
    return name if place == Path(root) / name else os.path.relpath(place, root)


def load_study(
    config: Mapping[str, Any],
    root: str | Path = ".",
    files: Sequence[str | Path] = (),
    schemas: str | Path | None = None,
    tables: Mapping[str, Callable[[Path], Any]] | None = None,
    read_alignment: Callable[[Path], Any] | None = None,
    read_given: Callable[[str], Any] | None = None,
    read_markers: Callable[[Path, Path | None, Path], Any] | None = None,
    peek_patches: Callable[[Path], Mapping[str, Any]] | None = None,
    check_models: Callable[..., Any] | None = None,
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
        The folder of the schemas; by default ``config/schemas`` under ``root``, else that of the repository.
    tables
        Readers of the tables the settings name, by key (such as ``ontology``); each raises a
        :class:`UserError` for a fault of its table.
    read_alignment
        Reads an alignment file; without it the files are only looked for.
    read_given
        Checks a file of given labels (with its sheet and columns); without it the files are only looked for.
    read_markers
        Reads the marker table, a table of one's own (or None) and the ontology that both stand on.
    peek_patches
        Reads the first record of an ``annotations.json``, for data sets that the environment names.
    check_models
        Checks what the schema of the models' settings cannot tell, by :func:`nuclass.training.config.parse_models`.

    Raises
    ------
    UserError
        With all faults in one message.
    """
    import pandas as pd

    root = Path(root)
    schemas = Path(schemas) if schemas is not None else home() / SCHEMAS
    for file in files:
        read_yaml(root / file)
    places = [root / file for file in files]
    locate = locator(places, "the command line (--config)" if places else "the configuration", config)
    checked, faults = check_settings(config, read_yaml(schemas / "config.schema.yaml"), locate)
    faults = faults or _check_numbers(checked, locate)
    section = checked.get("alignment")
    align = section.get("align", "given") if isinstance(section, dict) else "given"
    slides_schema = read_yaml(schemas / "slides.schema.yaml")
    section = checked.get("labels")
    labels = str(section.get("source", "markers")) if isinstance(section, dict) else "markers"
    rows, sheet_faults = read_slides(
        root,
        checked.get("slides"),
        slides_schema,
        str(align),
        read_alignment,
        labels=labels,
        read_given=read_given,
        windows=checked.get("windows") if not faults else None,
        peek_patches=peek_patches,
        environ=os.environ,
        held_out=not faults and checked["splits"]["hold_out"] != NO_HOLDOUT,
    )
    faults += sheet_faults
    models_schema = read_yaml(schemas / "models.schema.yaml")
    models, model_faults = _read_models(root, checked, models_schema)
    faults += model_faults
    short_models, short_faults = _short_models(root, checked, models_schema) if not faults else ({}, [])
    faults += short_faults
    faults += _check_tables(root, checked, tables or {})
    if read_markers is not None:
        faults += _check_markers(root, checked, read_markers, locate)
    raise_faults(faults, "The study's configuration cannot be used")
    if check_models is not None:
        locate_model = models_locator(root / checked["models"], read_models_file(root / checked["models"])[1])
        check_models(models, checked["models"], locate_model)
        check_models(short_models, f"{checked['models']}: ablations", lambda keys: locate_model(["ablations", *keys]))
    protocol = parse_protocol(checked["protocol"])
    checked["protocol"] = to_setting(protocol)
    slides = pd.DataFrame([row.values for row in rows]).set_index("slide")
    slides = apply_holdout(slides, checked["splits"], locate)
    raise_faults(_check_explored(checked, list(slides.index), locate), "The study's configuration cannot be used")
    study = Study(checked, slides, models, protocol, short_models)
    # Faults of the ablations are told now, not when their goal is asked for.
    study.plan_variants(locate=locate).check()
    return study


def load_settings(files: Sequence[str | Path], root: str | Path = ".") -> dict[str, Any]:
    """Return the checked settings of a study, without looking at its sheets and tables."""
    root = Path(root)
    merged = merge_files(files, root)
    locate = locator([root / file for file in files], "the configuration", merged)
    checked, faults = check_settings(merged, read_yaml(home() / SCHEMAS / "config.schema.yaml"), locate)
    raise_faults(faults or _check_numbers(checked, locate), "The configuration cannot be used")
    return checked


def _check_explored(config: Mapping[str, Any], slides: Sequence[str], locate: Any) -> list[UserError]:
    """Check that the slides of the explorer are in the sheet."""
    return [
        UserError(
            "figures.explorer.slides names a slide that is not in the sheet",
            where=locate(["figures", "explorer", "slides"]),
            found=f"{name}.{closest(name, list(slides))}",
            expected=", ".join(slides),
        )
        for name in config["figures"]["explorer"]["slides"]
        if name not in slides
    ]


def _check_numbers(config: Mapping[str, Any], locate: Any) -> list[UserError]:
    """Check settings, each valid by itself, against each other."""
    splits, windows, store = config["splits"], config["windows"], config["slide_store"]
    no_buffer = parse_protocol(config["protocol"]).no_buffer
    faults = split_faults(splits, max(windows.values()) * config["mpp"], config["mpp"], locate, no_buffer)
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


def _read_models(
    root: Path, config: Mapping[str, Any], schema: Mapping[str, Any]
) -> tuple[dict[str, Any], list[UserError]]:
    path = config.get("models")
    if not isinstance(path, str):
        return {}, []
    try:
        settings, files = read_models_file(root / path)
    except UserError as error:
        return {}, [error]
    locate = models_locator(root / path, files)
    if "protocol" in settings:
        fault = UserError(
            "the file of the models has the key 'protocol'",
            where=locate(["protocol"]),
            expected="it in the configuration, for it also bears on slides and splits",
            fix="move it to the configuration (config/config.yaml explains it); here only `nuclass train` reads it",
        )
        return {}, [fault]
    return check_settings(settings, schema, locate)


def _short_models(
    root: Path, config: Mapping[str, Any], schema: Mapping[str, Any]
) -> tuple[dict[str, Any], list[UserError]]:
    """Return the settings of the models with what their section ``ablations`` changes in them."""
    settings, files = read_models_file(root / config["models"])
    changes = settings.pop("ablations", {})
    settings = unshared(settings)
    _merge(settings, changes)
    locate = models_locator(root / config["models"], files)
    return check_settings(settings, schema, lambda keys: locate(["ablations", *keys]))


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


def _check_markers(
    root: Path, config: Mapping[str, Any], read: Callable[[Path, Path | None, Path], Any], locate: Any
) -> list[UserError]:
    """Read the marker tables on the ontology; a fault of the ontology itself is told by its own reader.

    Types that are to be left out must be in the tables: a misspelt one would stay in. Settings of the wrong kind are
    told by the schema.
    """
    labels = config.get("labels")
    if not isinstance(labels, dict) or not all(isinstance(config.get(key), str) for key in ("markers", "ontology")):
        return []
    extra, left_out = labels.get("extra_markers") or None, labels.get("leave_out", [])
    if not isinstance(extra, str | None) or not isinstance(left_out, list):
        return []
    try:
        table = read(root / config["markers"], root / extra if extra else None, root / config["ontology"])
    except UserError as error:
        return [] if str(config["ontology"]) in str(error.where) else [error]
    known = sorted(set(table["cell_type"]))
    return [
        UserError(
            f"labels.leave_out has '{name}', which is no cell type of the marker table.{closest(str(name), known)}",
            where=locate(["labels", "leave_out"]),
            expected="names of the column cell_type of the marker table",
            fix="correct the name, or take it out",
        )
        for name in left_out
        if name not in known
    ]
