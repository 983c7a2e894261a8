"""The methods page: its numbers are those of the files and settings."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from nuclass.core.errors import UserError
from nuclass.core.files import write_json
from nuclass.tables.methods import write_methods

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    models = yaml.safe_load((ROOT / "config" / "models" / "demo.yaml").read_text(encoding="utf-8"))
    for name, seed in (("local", 42), ("global", 43), ("gate", 44)):
        models[name]["seed"] = seed
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    config |= {"study": "one & two", "splits": {"layout": "bands", "buffer_um": 100, "seed": 5}}
    config["labels"] = {"confidence": "calibrated", "min_confidence": 0.5, "source": "markers", "seed": 6}
    rows = [("a", "ovary", "train", "train", "T", 700), ("a", "ovary", "train", "val", "T", 200),
            ("b", "lung", "train", "train", "B", 800), ("b", "lung", "train", "buffer", "B", 40),
            ("c", "lung", "cohort", "test", "T", 1234)]  # fmt: skip
    counts = pd.DataFrame(rows, columns=["slide", "organ", "role", "split", "class", "cells"])
    counts.to_csv(tmp_path / "counts.csv", index=False)
    quality = {
        "slide": ["a", "b"],
        "cells": [1000, 3000],
        "with_class": [900, 2100],
        "abstained": [60, 700],
        "dropped": 40,
    }
    pd.DataFrame(quality).to_csv(tmp_path / "quality.csv", index=False)
    shared = {
        "epochs": 4,
        "seconds": 90.0,
        "parameters": 1500,
        "temperature": 0.5,
        "val": {"f1_macro": 0.7, "accuracy": 0.8},
    }
    write_json(tmp_path / "a_split.json", {"layout": "bands"})
    write_json(tmp_path / "b_split.json", {"layout": "blocks"})
    for name in ("local", "global"):
        write_json(tmp_path / f"{name}.json", shared | {"n_train": 1500, "effective_batch_size": 64})
    write_json(tmp_path / "gate.json", shared | {"n_fit": 150, "n_select": 50})
    return {
        "config": config,
        "models": models,
        "composition": tmp_path / "counts.csv",
        "quality": tmp_path / "quality.csv",
        "metrics": {name: tmp_path / f"{name}.json" for name in ("local", "global", "gate")},
        "slides": {
            "a": slide("train", "ovary", align="refine"),
            "b": slide("train", "lung"),
            "c": slide("cohort", "lung"),
        },
        "splits": [tmp_path / "a_split.json", tmp_path / "b_split.json"],
        "checkpoints": {"local": {"torch": "9.8"}, "gate": {"torch": "9.9", "python": "3.12"}},
        "packages": {"numpy": "2.6", "absent": None},
    }


def slide(role: str, organ: str, source: str = "synthetic", align: str = "", labels: str = "") -> dict[str, str]:
    return {"role": role, "organ": organ, "source": source, "align": align, "labels": labels}


def alike(study: dict[str, Any], **words: str) -> dict[str, Any]:
    """The study with these words in the row of every slide."""
    return study | {"slides": {name: row | words for name, row in study["slides"].items()}}


def under(study: dict[str, Any], *switches: str) -> dict[str, Any]:
    return study | {"config": study["config"] | {"protocol": dict.fromkeys(switches, True)}}


def written(study: dict[str, Any], folder: Path) -> str:
    write_methods(folder / "m.html", **study)
    page = (folder / "m.html").read_text(encoding="utf-8")
    assert "<h1>Methods of the study one &amp; two</h1>" in page
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_numbers_are_those_of_the_study(study: dict[str, Any], tmp_path: Path) -> None:
    text = written(study, tmp_path)
    side = study["models"]["local"]["backbone"]["input_px"]
    for words in (
        "2 training slides (2 organs: ovary, lung) and 1 held-out cohort (1 organ: lung), with 2 classes",
        "By source: 3 generated (synthetic). Results on generated slides show",
        "was given and then bettered on the picture (1 slide) and was given (2 slides)",
        "224 px (56 um) and the global one 1024 px (256 um)",
        "Labels come from marker genes, by the transcripts of each cell (3 slides). Labels by marker genes are kept "
        "from a calibrated confidence of 0.5 on. Of 4,000 cells 3,000 have a label with a class of the study (75.0 %) "
        "and 760 stay without a label; 80 fail quality control.",
        "Of the training slides 1 is cut in space into bands and 1 is cut in space into blocks.",
        "1,500 labelled cells train, 200 validation. 40 cells in a buffer of 100 um between them are used by none.",
        f"timm:resnet10t on {side} px sees the local window; the organ modulates its features (FiLM)",
        "In training windows of the local and global models are changed at random: quarter turns and mirrors, stain,",
        "Their context features are of windows as they are and of 1 changed copy.",
        "Before it was frozen that network was trained by this study: from the global windows of training cells it "
        "learned to tell the mixture of classes, by the labels of training cells, within 40 and 112 um around the cell",
        "It trained 4 epochs on 1,500 cells and has 1,500 parameters; temperature 0.500",
        "the weight (1 - p_A(y))^2",
        "hidden layers of 64 and 32 units",
        "fitted to 150 cells of validation and stopped by 50 others",
        "1,234 labelled cells of 1 cohort, of patients that no training slide is of, by the sheet of slides, are",
        "labels 6, splits 5, evaluation 42, local model 42, global model 43, gate model 44",
        "Protocol: corrected",
    ):
        assert words in text, words
    assert "By the protocol" not in text
    assert "files of windows" not in text
    assert "given are kept" not in text
    assert re.search(r"local\s+4\s+1\.5\s+1,500\s+0\.700\s+0\.800", text)
    assert re.search(r"as the checkpoints say: Model torch python local 9\.8 gate 9\.9 3\.12 In the env", text)
    assert re.search(r"numpy\s+2\.6", text)
    assert "absent" not in text


def test_context_weights_from_elsewhere_and_other_changes(study: dict[str, Any], tmp_path: Path) -> None:
    models = study["models"]
    del models["context"]["pretrain"]
    models["context"]["views"] = 0
    models["global"] = models["global"] | {"augment": {"rotate": 5.0, "noise": 0.1, "dihedral": False}}
    text = written(study, tmp_path)
    assert "trained by this study" not in text
    assert "changed copy" not in text
    assert "of the local model are changed at random: quarter turns and mirrors, stain" in text
    assert "of the global model are changed at random: small turns and noise." in text
    text = written(under(study, "no_global_augmentation", "black_corners"), tmp_path)
    assert "of the global model are not changed." in text
    assert "stain" not in text[text.index("In training windows") : text.index("Labels come")]


def test_a_study_without_labels_or_cohorts(study: dict[str, Any], tmp_path: Path) -> None:
    pd.read_csv(study["composition"]).iloc[:0].to_csv(study["composition"], index=False)
    pd.read_csv(study["quality"]).iloc[:0].to_csv(study["quality"], index=False)
    text = written(study | {"slides": {}, "splits": []}, tmp_path)
    assert "0 training slides (0 organs: none)" in text
    assert "synthetic" not in text


def test_one_of_each_is_told_in_the_singular(study: dict[str, Any], tmp_path: Path) -> None:
    counts = pd.DataFrame([("a", "ovary", "train", "train", "T", 1), ("a", "ovary", "train", "buffer", "T", 1),
                           ("c", "lung", "cohort", "test", "T", 1)],
                          columns=["slide", "organ", "role", "split", "class", "cells"])  # fmt: skip
    counts.to_csv(study["composition"], index=False)
    quality = {"slide": ["a"], "cells": [1], "with_class": [1], "abstained": [1], "dropped": [1]}
    pd.DataFrame(quality).to_csv(study["quality"], index=False)
    slides = {name: study["slides"][name] for name in "ac"}
    text = written(study | {"slides": slides, "splits": study["splits"][:1]}, tmp_path)
    for words in (
        "1 training slide (1 organ: ovary) and 1 held-out cohort (1 organ: lung), with 1 class.",
        "Of 1 cell 1 has a label with a class of the study (100.0 %) and 1 stays without a label; 1 fails quality",
        "Of the training slides 1 is cut in space into bands. 1 labelled cell train, 0 validation. "
        "1 cell in a buffer of 100 um between them is used by none.",
        "1 labelled cell of 1 cohort, of patients that no training slide is of, by the sheet of slides, is reported on",
    ):
        assert words in text, words


def test_a_study_of_patch_files_alone_claims_no_transcripts(study: dict[str, Any], tmp_path: Path) -> None:
    for file in study["splits"]:
        write_json(file, {"layout": "given"})
    text = written(alike(study, source="patches"), tmp_path)
    for words in (
        "By source: 3 from files of windows (patches).",
        "3 slides came as files of windows that were cut elsewhere",
        "Labels come from the annotations of the files of windows (3 slides). Labels that were given are kept",
        "760 stay without a label. ",
        "Of the training slides 2 are divided as the files came.",
        "40 cells in a buffer between them are used by none. Where the split was given, training cells whose",
    ):
        assert words in text, words
    for words in ("transcript", "marker", "lignment", "are stored", "confidence of", "quality control", "cut in space",
                  "buffer of", "synthetic", "enerated"):  # fmt: skip
        assert words not in text, words


def test_slides_of_several_kinds_are_told_each(study: dict[str, Any], tmp_path: Path) -> None:
    write_json(study["splits"][1], {"layout": "given"})
    slides = {
        "a": slide("train", "ovary", "local", "register", "given"),
        "b": slide("train", "lung", "patches"),
        "c": slide("cohort", "lung", "dataset", "", "given_then_markers"),
    }
    text = written(study | {"slides": slides}, tmp_path)
    for words in (
        "1 from Xenium outputs at hand (local), 1 from public Xenium data sets (dataset) and 1 from files of windows",
        "was found from the images (1 slide) and was given (1 slide). 1 slide came as files of windows",
        "Labels come from others, as they were given (1 slide), others where they were given, else from marker genes "
        "(1 slide) and the annotations of the files of windows (1 slide). Labels by marker genes are kept from",
        "no confidence is asked of them",
        "1 is cut in space into bands and 1 is divided as the files came.",
        "40 cells in a buffer of 100 um between them are used by none. Where the split was given",
    ):
        assert words in text, words


@pytest.mark.parametrize("by", ["row", "settings"])
def test_labels_that_are_given_are_not_said_to_be_of_markers(study: dict[str, Any], by: str, tmp_path: Path) -> None:
    study = alike(study, source="local", labels="given" * (by == "row"))
    study["config"]["labels"]["source"] = "markers" if by == "row" else "given"
    text = written(study, tmp_path)
    assert "Labels come from others, as they were given (3 slides). Labels that were given are kept where" in text
    assert "marker genes" not in text
    assert "confidence of" not in text


def test_flaws_that_are_on_are_told_where_they_count(study: dict[str, Any], tmp_path: Path) -> None:
    write_json(study["splits"][0], {"layout": "box"})
    write_json(study["splits"][1], {"layout": "box"})
    text = written(under(study, "no_buffer"), tmp_path)
    assert "2 are cut in space by one central box, which is validation. 1,500 labelled cells" in text
    assert "(no_buffer) no buffer is between them: their windows can share pixels. 40 cells without a split" in text
    assert "buffer of 100 um" not in text
    text = written(under(study, "gate_on_train"), tmp_path)
    assert "it was fitted to 150 cells that both models had been trained on, and stopped by 50 of validation" in text
    assert "cells of validation and stopped" not in text
    text = written(under(study, "inverted_mpp"), tmp_path)
    assert "in truth at another scale (mpp_true of each store)" in text
    assert "mpp_true" not in written(under(alike(study, source="patches"), "inverted_mpp"), tmp_path)
    for switch, words in (
        ("test_as_val", "test cells choose the models where a slide has some"),
        ("first_organ", "cells are predicted as of the first organ"),
        ("closed_set", "predictions are forced into the classes"),
        ("policy_on_test", "the safety policy is tuned on the cells it is reported on"),
        ("smaller_gate_context", "it sees context three quarters the size"),
    ):
        assert f"By the protocol ({switch}) {words}" in written(under(study, switch), tmp_path), switch


def test_folds_are_told(study: dict[str, Any], tmp_path: Path) -> None:
    study["config"]["splits"] |= {"folds": 5, "fold": 2}
    assert "Of 5 folds fold 2 is validation." in written(study, tmp_path)


def test_a_table_without_its_columns_is_told(study: dict[str, Any], tmp_path: Path) -> None:
    pd.read_csv(study["composition"]).drop(columns="role").to_csv(study["composition"], index=False)
    with pytest.raises(UserError, match="lacks columns"):
        write_methods(tmp_path / "m.html", **study)
