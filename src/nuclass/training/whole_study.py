"""A study with everything that can be checked of it before a job runs: settings, sheets, tables, models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nuclass.core.config import Study, load_study


def load_whole_study(
    settings: Mapping[str, Any], root: str | Path = ".", files: Sequence[str | Path] = (), offline: bool = True
) -> Study:
    """Check a study with the readers of all its tables, as the workflow does when it starts.

    Parameters
    ----------
    settings
        The settings, as merged from all files and the command line.
    root
        The folder that relative paths start from.
    files
        The files the settings came from, later ones winning; used to name file and line of a fault.
    offline
        Whether, with ``fetch.offline``, files that are not here are a fault.

    Raises
    ------
    UserError
        With all faults in one message.
    """
    from nuclass.labels.given import check_given
    from nuclass.labels.markers import load_markers
    from nuclass.labels.ontology import load_ontology
    from nuclass.patches.annotations import peek_annotations
    from nuclass.training.config import parse_models
    from nuclass.xenium.alignment import read_alignment
    from nuclass.xenium.fetch import check_offline

    study = load_study(
        settings,
        root,
        files,
        tables={"ontology": load_ontology},
        read_alignment=read_alignment,
        read_given=check_given,
        read_markers=load_markers,
        peek_patches=peek_annotations,
        check_models=parse_models,
    )
    if offline:
        check_offline(study.config, study.slides, root)
    return study
