"""Sizes of slides, downloads and disk of a study, against numbers reckoned by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nuclass.core.config import Study, load_study, merge_files
from nuclass.core.needs import FETCHED_AT_ONCE, NETWORKS, OUTS, Download, Folder, study_needs
from nuclass.core.sizes import NOTHING, Estimate, folder_bytes, slide_sizes, tiff_shape, total
from nuclass.models.backbones.registry import REGISTRY
from nuclass.training.config import parse_models

REPOSITORY = Path(__file__).parent.parent
WINDOWS = {"local": 224, "global": 1024}


def study_of(*files: str) -> Study:
    chosen = ["config/config.yaml", *files]
    return load_study(merge_files(chosen, REPOSITORY), REPOSITORY, chosen, check_models=parse_models)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A study's folder in which nothing was made yet."""
    (tmp_path / "resources").mkdir()
    for name in ("datasets.tsv", "dataset_files.tsv"):
        shutil.copy(REPOSITORY / "resources" / name, tmp_path / "resources" / name)
    return tmp_path


def test_estimates_add_and_multiply() -> None:
    a, b = Estimate(1, 2, 3), Estimate(10, 20, 40)
    assert a + b == Estimate(11, 22, 43)
    assert a * b == Estimate(10, 40, 120)
    assert 2 * a == Estimate(2, 4, 6)
    assert b.left(15) == Estimate(0, 5, 25)
    assert total([]) == NOTHING


def test_networks_are_those_of_the_registry() -> None:
    assert {name: (spec.parameters, spec.feature_dim) for name, spec in REGISTRY.items()} == NETWORKS


def test_sizes_of_public_slides(empty: Path) -> None:
    needs = study_needs(study_of("config/paper.yaml"), empty)
    ovary, breast, lung = (needs.slides[name] for name in ("ovary_1", "breast_1", "lung_1"))
    assert ovary.cells == Estimate.exactly(407_124)
    assert ovary.mpx.expected == pytest.approx(42852 * 29849 * (0.270 / 0.25) ** 2 / 1e6)
    assert breast.mpx.expected == pytest.approx(51351 * 107121 * (0.2125 / 0.25) ** 2 / 1e6)
    assert not lung.known
    assert "assumed" in lung.rests_on
    assert lung.mpx.low < lung.mpx.expected < lung.mpx.high


def test_downloads_are_told_by_slide(empty: Path) -> None:
    needs = study_needs(study_of("config/paper.yaml"), empty)
    files = {(file.slide, file.file): file for file in needs.downloads}
    assert files["breast_1", "H&E"].size == Estimate.exactly(8.23e9)
    outs = files["breast_1", "outs.zip, some members"]
    assert outs.size.expected == outs.kept.expected == 892_966 * 1000
    assert outs.size.high == 48.29e9
    assert outs.kept.high == 892_966 * 4000
    assert ("heart_1", "cell_groups") not in files
    assert files["ovary_1", "cell_groups"].size.expected == 16.5e6
    assert needs.to_download.expected == sum(file.size.expected for file in needs.downloads)
    assert needs.weights["uni2-h"] == 4 * 681_394_176


def test_what_is_here_is_not_asked_for_again(empty: Path) -> None:
    study = study_of("config/paper.yaml")
    before = study_needs(study, empty)
    folder = empty / "resources/bundles/ovary_1"
    folder.mkdir(parents=True)
    (folder / "ovary_1_cell_groups.csv").write_bytes(b"x" * 16_500_000)
    after = study_needs(study, empty)
    assert before.to_download.expected - after.to_download.expected == pytest.approx(16.5e6)
    bundles = next(part for part in after.folders if part.folder == "resources/bundles")
    assert bundles.here == 16_500_000
    assert before.to_free.expected - after.to_free.expected == pytest.approx(16.5e6)


def test_files_of_another_study_do_not_count(empty: Path) -> None:
    folder = empty / "resources/bundles/ovary_1"
    folder.mkdir(parents=True)
    (folder / "ovary_1_cell_groups.csv").write_bytes(b"x" * 16_500_000)
    (folder / "bundle.json").write_text(json.dumps({"source": "synthetic"}))
    pd.DataFrame({"cell_id": ["a", "b"]}).to_parquet(folder / "cells.parquet")
    needs = study_needs(study_of("config/paper.yaml"), empty)
    assert needs.slides["ovary_1"].cells.expected == 407_124
    assert all(file.here == 0 for file in needs.downloads)


def test_fetched_bundles_tell_their_cells(empty: Path) -> None:
    folder = empty / "resources/bundles/ovary_1"
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"source": "Xenium_Prime_Ovarian_Cancer_FFPE_XRrun"}))
    pd.DataFrame({"cell_id": ["a", "b"]}).to_parquet(folder / "cells.parquet")
    needs = study_needs(study_of("config/paper.yaml"), empty)
    size = needs.slides["ovary_1"]
    assert size.cells == Estimate.exactly(2)
    assert all(file.left == NOTHING for file in needs.downloads if file.slide == "ovary_1")
    assert all(file.left.expected > 0 for file in needs.downloads if file.slide == "colon_1")
    assert "fetched bundle" in size.rests_on


def test_local_slides_are_measured_by_their_files(tmp_path: Path) -> None:
    import numpy as np
    import tifffile

    (tmp_path / "out").mkdir()
    (tmp_path / "out/experiment.xenium").write_text(json.dumps({"num_cells": 5000}))
    tifffile.imwrite(tmp_path / "he.tif", np.zeros((200, 300, 3), np.uint8))
    row = {"organ": "lung", "role": "train", "source": "local", "dataset": "", "path": "out", "he": "he.tif"}
    size = slide_sizes({"a": row}, 0.25, WINDOWS, tmp_path)["a"]
    assert size.cells == Estimate.exactly(5000)
    assert size.mpx.expected == pytest.approx(200 * 300 * (0.2738 / 0.25) ** 2 / 1e6)
    assert tiff_shape(tmp_path / "out/experiment.xenium") is None


def test_nothing_known_is_said(tmp_path: Path) -> None:
    row = {"organ": "lung", "role": "train", "source": "dataset", "dataset": "unheard", "path": "", "he": ""}
    size = slide_sizes({"a": row}, 0.25, WINDOWS, tmp_path)["a"]
    assert not size.known
    assert "assumed" in size.rests_on


def test_disk_of_the_demo(empty: Path) -> None:
    needs = study_needs(study_of(), empty)
    folders = {part.folder: part for part in needs.folders}
    # Five slides of 22.9 and three of 20.5 million px, 3.8 bytes each; tables of 140 bytes a cell; 2 MB of pictures.
    store = (5 * 22.9 + 3 * 20.5) * 1e6 * 3.8 + (5 * 2055 + 3 * 1960) * 140 + 8 * 2e6
    assert folders["results/slides"].kept.expected == pytest.approx(store)
    assert not needs.downloads
    assert needs.kept.expected == pytest.approx(sum(part.kept.expected for part in needs.folders))
    assert needs.peak.expected > needs.kept.expected


def test_rules_choose_what_counts(empty: Path) -> None:
    study = study_of()
    few = {part.folder for part in study_needs(study, empty, {"build_slide", "simulate_bundle"}).folders}
    assert few == {"resources/bundles", "results/slides"}


def folders_of(study: Study, root: Path, *needed: str) -> dict[str, Folder]:
    return {part.folder: part for part in study_needs(study, root, needed=needed).folders}


def fill(folder: Path, size: float) -> None:
    """Let a folder hold so many bytes, of which the disk keeps none."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "files.bin").open("wb") as stream:
        stream.truncate(int(size))


def test_what_is_finished_costs_nothing_more(empty: Path) -> None:
    study = study_of("config/paper.yaml")
    assert study_needs(study, empty, needed=()).to_free == NOTHING
    assert study_needs(study, empty, needed=()).peak == study_needs(study, empty).kept
    # Of a job that still runs only its own files are to come, and no more than the folder lacks.
    part = folders_of(study, empty, "train_global")["results/models"]
    whole = folders_of(study, empty, "train_local", "train_global", "train_gate", "train_baseline_finetuned")
    assert part.coming.expected == pytest.approx(681_394_176 * 4, rel=0.1)
    assert part.left == part.coming
    assert whole["results/models"].left == part.kept
    fill(empty / "results/models", part.kept.expected - 1e9)
    part = folders_of(study, empty, "train_global")["results/models"]
    assert part.left.expected == pytest.approx(1e9)
    assert not part.full
    fill(empty / "results/models", part.kept.expected + 1)
    assert folders_of(study, empty, "train_global")["results/models"].full


def test_running_states_are_those_of_jobs_to_come(empty: Path) -> None:
    study = study_of("config/paper.yaml")
    # Of UNI2-h weights, two moments and the best weights, each written beside the one before.
    state = 2 * 16 * 681_394_176
    work = folders_of(study, empty, "train_global")["work"].passing
    assert work == Estimate.exactly(state)
    assert folders_of(study, empty, "train_local", "train_global")["work"].passing == Estimate(
        state, 2 * state, 2 * state
    )
    assert folders_of(study, empty, "train_local_variant")["work"].passing.high == 16 * state
    assert "work" not in folders_of(study, empty, "train_gate", "render_report")


def test_parts_of_features_and_predictions_lie_in_work(empty: Path) -> None:
    study = study_of("config/paper.yaml")
    needs = study_needs(study, empty, needed={"embed_context"})
    work = next(part for part in needs.folders if part.folder == "work").passing
    views = {
        name: 1 + study.models["context"]["views"] * 0.9 * (size.role == "train") for name, size in needs.slides.items()
    }
    sizes = [size.cells.expected * 0.8 * 2 * 1024 * views[name] for name, size in needs.slides.items()]
    assert work.expected == pytest.approx(sum(sorted(sizes)[-2:]))
    predicted = folders_of(study, empty, "predict")["work"].passing
    assert 0 < predicted.low < predicted.expected < predicted.high


def test_whole_zips_of_slides_that_are_fetched_at_once(empty: Path) -> None:
    study = study_of("config/paper.yaml")
    needs = study_needs(study, empty)
    zips = {file.slide: file.size.high for file in needs.downloads if file.file == OUTS}
    largest = sorted(zips, key=lambda slide: zips[slide])[-5:]
    bundles = next(part for part in needs.folders if part.folder == "resources/bundles")
    assert bundles.passing == Estimate(0, 0, sum(zips[slide] for slide in largest[1:]))
    assert zips["breast_1"] == 48.29e9
    assert f"downloads={FETCHED_AT_ONCE}" in (REPOSITORY / "profiles/slurm/config.yaml").read_text()
    # A slide that is here whole needs its zip no more.
    row = study.slides.loc[largest[-1]]
    folder = empty / "resources/bundles" / largest[-1]
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(json.dumps({"source": row["dataset"]}))
    bundles = next(part for part in study_needs(study, empty).folders if part.folder == "resources/bundles")
    assert bundles.passing.high == sum(zips[slide] for slide in largest[:-1])


@pytest.mark.parametrize(("tag", "count", "value"), [(256, 1, 0), (257, 1, 0), (256, 0, 64), (277, 0, 3)])
def test_damaged_headers_of_pictures_tell_nothing(tmp_path: Path, tag: int, count: int, value: int) -> None:
    import struct

    import numpy as np
    import tifffile

    file = tmp_path / "he.tif"
    tifffile.imwrite(file, np.zeros((64, 64, 3), np.uint8), tile=(16, 16))
    assert tiff_shape(file) == (64, 64)
    with tifffile.TiffFile(file) as tiff:
        at = tiff.pages.first.tags[tag].offset
    whole = bytearray(file.read_bytes())
    # Of an entry of the header: its kind stays, how many values it has and what they are do not.
    whole[at + 4 : at + 12] = struct.pack("<II", count, value)
    file.write_bytes(whole)
    assert tiff_shape(file) is None


def test_a_whole_download_leaves_nothing(tmp_path: Path) -> None:
    size = Estimate(10, 20, 1000)
    assert Download("a", "f", size, Estimate(10, 20, 30), 5, True, "").left == NOTHING
    assert Download("a", "f", size, Estimate(10, 20, 30), 15, False, "").left == Estimate(0, 5, 985)
    assert folder_bytes(tmp_path / "missing") == 0
