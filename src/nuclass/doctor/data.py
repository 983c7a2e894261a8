"""The slides' files: found, of the right kind, and readable; nothing is read whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.patch_rows import PATCHES, find_patches
from nuclass.core.progress import readable_bytes
from nuclass.doctor.case import Case
from nuclass.doctor.exam import Check, Finding, failed, of_error, passed, skipped, warned


def slides(case: Case) -> list[Finding]:
    """One finding for each slide that does not come from the workflow itself."""
    if not case.sound:
        return [skipped("the study cannot be read")]
    found: list[Finding] = []
    made = 0
    to_come: list[str] = []
    for slide, values in case.study.slides.to_dict("index").items():
        row = {"slide": str(slide), **{str(key): value for key, value in values.items()}}
        if row["source"] == "synthetic":
            made += 1
            continue
        try:
            one = _slide(case, row)
            if one is None:
                to_come.append(str(slide))
            else:
                found.append(one)
        except UserError as error:
            found.append(of_error(error, str(slide)))
        except OSError as error:
            told = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
            found.append(failed(told, "check path and rights of the file", str(slide)))
    if made:
        found.insert(0, passed(f"{made} of the sheet, written by the workflow itself", "synthetic slides"))
    return found + ([_download(case, to_come)] if to_come else [])


def _download(case: Case, slides: list[str]) -> Finding:
    from nuclass.core.needs import study_needs

    size = study_needs(case.study, case.root).to_download
    told = f"{readable_bytes(size.expected)}, {readable_bytes(size.low)} to {readable_bytes(size.high)}"
    return passed(f"{', '.join(slides)}: downloaded when the study runs, about {told}", "public slides")


def _slide(case: Case, row: Mapping[str, Any]) -> Finding | None:
    """Return what there is of a slide; None where it is still to be downloaded."""
    if row["source"] == PATCHES:
        return _patches(case, row)
    from nuclass.core.own_files import own_file
    from nuclass.xenium.fetch import BUNDLES, REGISTRY, missing_of, needs_image
    from nuclass.xenium.registry import read_registry
    from nuclass.xenium.slide_folder import open_folder

    align = str(row["align"] or case.study.config["alignment"]["align"])
    registry = read_registry(own_file(REGISTRY, case.root)) if row["source"] == "dataset" else None
    image = needs_image(row, align)
    place = open_folder(_placed(case.root, row), case.root / BUNDLES / row["slide"], registry, image)
    if row["source"] == "dataset":
        absent = missing_of(place, align)
        if absent:
            sizes = ", ".join(f"{item.place.name} ({item.size})" for item in absent)
            if case.study.config["fetch"]["offline"]:
                remedy = f"put the files into {place.out}, or set fetch.offline to false"
                return failed(f"not here, and fetch.offline is set: {sizes}", remedy, row["slide"])
            return None
    return _local(place, row, image, align)


def _placed(root: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its paths starting from the study's folder."""
    moved = {key: str(root / row[key]) for key in ("path", "he") if row.get(key)}
    if row.get("alignment") and (root / str(row["alignment"])).is_file():
        moved["alignment"] = str(root / row["alignment"])
    return {**row, **moved}


def _local(place: Any, row: Mapping[str, Any], image: bool, align: str) -> Finding:
    from nuclass.core.bundle_source import EXPERIMENT
    from nuclass.core.files import read_json
    from nuclass.slides.source import open_source
    from nuclass.xenium.alignment import read_alignment
    from nuclass.xenium.members import choose, names_in, require

    source = place.source
    if source is not None and not source.is_zip:
        experiment = read_json(source.path / EXPERIMENT)
        require(choose(source.names, experiment, image), source.path)
        where = str(source.path)
    elif source is not None:
        # What experiment.xenium says of its image is read when it is unpacked.
        require(choose(source.names, {}, image), source.path)
        where = str(source.path)
    else:
        require(choose(names_in(place.out), {}, image), place.out)
        where = str(place.out)
    he = place.he_on_disk() or place.out / place.he_name(None)
    with open_source(he) as picture:
        height, width = picture.shape
        corner = picture.region(len(picture.levels) - 1, 0, 0, 8, 8)
        told = f"{where}; H&E {width:,} x {height:,} px, {len(picture.levels)} levels, by {picture.reader}"
        levels = len(picture.levels)
    alignment = _alignment_file(place, row, he)
    if alignment is not None:
        read_alignment(alignment)
    elif align != "register" and not row.get("alignment"):
        return failed(
            f"{told}; no alignment beside the H&E or the output",
            "fill the column 'alignment' of the slide sheet, or set its 'align' to register",
            str(row["slide"]),
        )
    if levels == 1 and max(height, width) > 20_000 and corner.size:
        return warned(
            f"{told}: it has one level, so reading it takes long",
            "vips tiffsave H_AND_E.tif pyramid.ome.tif --tile --pyramid --compression jpeg   (or leave it: it works)",
            str(row["slide"]),
        )
    return passed(told, str(row["slide"]))


def _alignment_file(place: Any, row: Mapping[str, Any], he: Path) -> Path | None:
    text = str(row.get("alignment") or "")
    if text:
        return Path(place.row["alignment"]) if Path(place.row["alignment"]).is_file() else None
    beside: Path | None = place.alignment_on_disk(he)
    own = [place.out / name for name in place.alignment_names()]
    return beside or next((file for file in own if file.is_file()), None)


def _patches(case: Case, row: Mapping[str, Any]) -> Finding:
    import h5py

    files = find_patches(case.root / str(row["path"]), case.study.config["windows"])
    told = []
    for path in files.paths:
        if Path(path).suffix == ".h5":
            try:
                with h5py.File(path, "r") as opened:
                    told.append(f"{Path(path).name} with {len(opened)} entries")
            except OSError as error:
                return failed(
                    f"{path} is no whole HDF5 file: {error}", "copy or make the file again", str(row["slide"])
                )
    return passed(f"{row['path']}: {', '.join(told)}", str(row["slide"]))


CHECKS = [Check("data", "slides", slides, 60.0)]
