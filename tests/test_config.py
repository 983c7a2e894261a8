"""Every mistake in configuration and sheets gives one clear message, before anything runs."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nuclass.core.config import load_study, merge_files
from nuclass.core.errors import UserError
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology
from nuclass.xenium.alignment import read_alignment

REPOSITORY = Path(__file__).parent.parent
CONFIG = Path("config/config.yaml")
SHEET = Path("config/slides.tsv")
Reader = Callable[[Path], object]
MODELS = Path("config/models/demo.yaml")
ROW = "ovary_1\tovary\ttrain\tovary_donor_1\tsynthetic\t\t\t\t\t\t\t\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with the demo study's own files, to be spoilt."""
    for name in ("config", "resources"):
        shutil.copytree(
            REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("bundles", "truth"), dirs_exist_ok=True
        )
    return tmp_path


def load(folder: Path, *files: Path) -> None:
    names = [CONFIG, *files]
    load_study(merge_files(names, folder), folder, names, read_alignment=read_alignment)


def message(folder: Path, *files: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, *files)
    return str(caught.value)


def replace(folder: Path, file: Path, old: str, new: str) -> int:
    """Replace the only occurrence of ``old`` and return its line."""
    text = (folder / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def set_value(folder: Path, key: str, text: str) -> int:
    """Set a key of config.yaml, such as ``qc.min_genes``, and return its line."""
    *section, name = key.split(".")
    lines = (folder / CONFIG).read_text(encoding="utf-8").splitlines()
    start = lines.index(f"{section[0]}:") if section else 0
    indent = "  " * len(section)
    number = next(n for n in range(start, len(lines)) if lines[n].startswith(f"{indent}{name}:"))
    lines[number] = f"{indent}{name}: {text}"
    (folder / CONFIG).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return number + 1


def test_the_demo_study_is_sound(study: Path) -> None:
    loaded = load_study(merge_files([CONFIG], study), study, [CONFIG])
    assert loaded.train_slides == ["ovary_1", "lung_1", "pancreas_1", "breast_1", "colon_1"]
    assert loaded.cohorts == ["ovary_h", "lung_h", "pancreas_h"]


def test_slides_of_the_explorer_are_those_of_the_sheet(study: Path) -> None:
    settings = merge_files([CONFIG], study)
    settings["figures"]["explorer"]["slides"] = ["ovary_h", "lung_1"]
    assert load_study(settings, study, [CONFIG]).config["figures"]["explorer"]["slides"] == ["ovary_h", "lung_1"]
    settings["figures"]["explorer"]["slides"] = ["ovary_x"]
    with pytest.raises(UserError, match=r"ovary_x\. Did you mean 'ovary_"):
        load_study(settings, study, [CONFIG])


def test_the_paper_study_is_sound(study: Path) -> None:
    names = [CONFIG, Path("config/paper.yaml")]
    loaded = load_study(merge_files(names, study), study, names)
    assert len(loaded.train_slides) == 8
    assert sorted(loaded.slides.loc[loaded.cohorts, "organ"]) == ["lung", "ovary", "pancreas"]


def test_the_demo_file_states_every_default(study: Path) -> None:
    written = merge_files([CONFIG], study)
    assert load_study(written, study).config == written


def test_keys_left_out_get_their_defaults(study: Path) -> None:
    loaded = load_study({"study": "mine", "slides": str(SHEET)}, study)
    assert loaded.config["windows"] == {"local": 224, "global": 1024}
    assert loaded.config["figures"]["gradcam"]["per_cohort"] == 2


def test_text_that_spells_a_number_is_read_as_one(study: Path) -> None:
    settings = merge_files([CONFIG], study)
    settings["synthetic"]["seed"] = "7"
    settings["qc"]["require_nucleus"] = "false"
    settings["labels"]["resolutions"] = ["0.5", "1e0"]
    loaded = load_study(settings, study).config
    assert loaded["synthetic"]["seed"] == 7
    assert loaded["qc"]["require_nucleus"] is False
    assert loaded["labels"]["resolutions"] == [0.5, 1.0]


def test_misspelt_key(study: Path) -> None:
    line = replace(study, CONFIG, "  min_genes:", "  min_gene:")
    assert message(study) == (
        "unknown key 'min_gene' in qc. Did you mean 'min_genes'?\n"
        f"  where:      {study / CONFIG}, line {line}\n"
        "  expected:   one of max_cell_area, max_control_fraction, max_off_slide, min_cell_area, min_genes, "
        "min_transcripts, require_nucleus\n"
        "  to mend it: correct the spelling, or delete the line"
    )


def test_misspelt_key_of_a_model(study: Path) -> None:
    text = (study / MODELS).read_text(encoding="utf-8")
    start = text.index("\nlocal:")
    spoilt = text[:start] + text[start:].replace("  backbone:", "  bakcbone:", 1)
    (study / MODELS).write_text(spoilt, encoding="utf-8")
    told = message(study)
    assert told.startswith("unknown key 'bakcbone' in local. Did you mean 'backbone'?\n")
    assert f"{study / MODELS}, line " in told


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("windows.global", "wide", ["windows.global", "'wide' (text)", "a whole number"]),
        ("mpp", "-1", ["mpp", "-1 (a whole number)", "more than 0"]),
        ("figures.formats", "[pdf, pgn]", ["figures.formats[1]", "Did you mean 'png'?", "pdf, png, svg"]),
        ("splits.buffer_um", "100", ["splits.buffer_um", "100 um", "at least 256 um"]),
        ("splits.test", "0.85", ["splits.val", " + 0.85", "a sum below 0.9"]),
        ("windows.local", "2048", ["local 2048 px, global 1024 px", "local below global"]),
        ("slide_store.shard", "2000", ["shard 2000 px, tile 256 px", "a multiple"]),
        ("synthetic.seed", "1\n  seed: 3", ["'seed' stands twice", "each key once"]),
        ("mpp", "[", ["not valid YAML", "column"]),
        ("slides", "config/slide.tsv", ["a sheet is missing", "config/slide.tsv"]),
        ("models", "config/models/dmeo.yaml", ["A file is missing", "dmeo.yaml"]),
        ("study", "''", ["the value of study is not valid"]),
    ],
)
def test_wrong_values(study: Path, key: str, text: str, told: list[str]) -> None:
    set_value(study, key, text)
    shown = message(study)
    for part in told:
        assert part in shown


def test_missing_key(study: Path) -> None:
    settings = merge_files([CONFIG], study)
    del settings["study"]
    with pytest.raises(UserError, match="the key 'study' is missing"):
        load_study(settings, study)


def test_all_faults_come_in_one_message(study: Path) -> None:
    set_value(study, "qc.min_genes", "few")
    set_value(study, "mpp", "9")
    replace(study, SHEET, ROW, ROW.replace("\tovary\t", "\tovry\t"))
    told = message(study)
    assert told.startswith("The study's configuration cannot be used: 3 faults\n1. ")
    for part in ("key mpp", "key qc.min_genes", "column organ", "Did you mean 'ovary'?"):
        assert part in told


def test_class_that_is_not_of_the_study(study: Path) -> None:
    settings = merge_files([CONFIG], study)
    replace(study, Path(settings["ontology"]), "class: T_Cell\n", "class: T_Cel\n")
    with pytest.raises(UserError) as caught:
        load_study(settings, study, tables={"ontology": load_ontology}, read_markers=load_markers)
    for part in ("T_Cel", "Did you mean 'T_Cell'?", "label_ontology.yaml"):
        assert part in str(caught.value)
    assert str(caught.value).count("The ontology") == 1, "the marker table's reader tells the ontology's faults again"


@pytest.mark.parametrize("own", [False, True])
def test_marker_of_an_unknown_cell_type(study: Path, own: bool) -> None:
    settings = merge_files([CONFIG], study)
    file = study / ("mine.tsv" if own else settings["markers"])
    if own:
        settings["labels"]["extra_markers"] = "mine.tsv"
        file.write_text("cell_type\tgene\tsign\torgans\tsource\n", encoding="utf-8")
    with file.open("a", encoding="utf-8") as stream:
        stream.write("B_Cel\tCD19\tpositive\t*\tmine\n")
    with pytest.raises(UserError) as caught:
        load_study(settings, study, tables={"ontology": load_ontology}, read_markers=load_markers)
    for part in ("B_Cel", "Did you mean 'B_Cell'?", file.name):
        assert part in str(caught.value)


def test_a_misspelt_cell_type_to_leave_out(study: Path) -> None:
    settings = merge_files([CONFIG], study)
    settings["labels"]["leave_out"] = ["Epithelial_Malignan", "T_Cell"]
    with pytest.raises(UserError) as caught:
        load_study(settings, study, read_markers=load_markers)
    for part in ("leave_out has 'Epithelial_Malignan'", "Did you mean 'Epithelial_Malignant'?"):
        assert part in str(caught.value)
    assert "T_Cell" not in str(caught.value)


def test_the_last_file_is_named(study: Path) -> None:
    (study / "mine.yaml").write_text("qc:\n  min_genes: few\n", encoding="utf-8")
    assert f"{study / 'mine.yaml'}, line 2, key qc.min_genes" in message(study, Path("mine.yaml"))


def test_the_command_line_is_named(study: Path) -> None:
    settings = merge_files([CONFIG], study)
    settings["mpp"] = "wide"
    with pytest.raises(UserError, match=r"where: +the command line \(--config\), key mpp"):
        load_study(settings, study, [CONFIG])


def test_duplicate_slide(study: Path) -> None:
    line = replace(study, SHEET, ROW, ROW + ROW)
    assert message(study) == (
        "the slide 'ovary_1' stands twice\n"
        f"  where:      {SHEET}, lines {line} and {line + 1}\n"
        "  expected:   each slide once\n"
        "  to mend it: delete one row, or give it another name"
    )


def test_patient_on_both_sides(study: Path) -> None:
    replace(study, SHEET, "ovary_donor_h", "ovary_donor_1")
    told = message(study)
    assert "the patient 'ovary_donor_1' stands on both sides" in told
    assert "'ovary_1' is for training, 'ovary_h' is a cohort" in told


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        (1, "ovry", ["Did you mean 'ovary'?", "column organ", "breast, colon"]),
        (2, "training", ["column role", "'training' (text)", "one of train, cohort"]),
        (4, "download", ["column source", "one of synthetic, local, dataset"]),
        (0, "a b", ["column slide", "'a b' (text)"]),
        (3, "", ["column patient", "text that is not empty"]),
        (1, "heart", ["no synthetic tissue exists for an organ", "heart", "breast, colon, lung"]),
        (5, "somewhere", ["a synthetic slide takes no dataset", "somewhere"]),
        (6, "somewhere", ["a synthetic slide takes no path", "somewhere"]),
        (10, "givn", ["the value of column labels is not valid. Did you mean 'given'?", "given_then_markers"]),
        (10, "given", ["no given labels are known for a slide", "they come with breast_1"]),
        (11, "labels.csv", ["a synthetic slide takes no given", "labels.csv"]),
        (9, "registr", ["the value of column align is not valid. Did you mean 'register'?", "given, refine, register"]),
    ],
)
def test_wrong_cells_of_the_sheet(study: Path, column: int, value: str, told: list[str]) -> None:
    cells = ROW.rstrip("\n").split("\t")
    cells[column] = value
    replace(study, SHEET, ROW, "\t".join(cells) + "\n")
    text = message(study)
    for part in (*told, f"{SHEET}, line "):
        assert part in text


def test_sheet_saved_with_commas(study: Path) -> None:
    (study / SHEET).write_text("slide,organ,role,patient,source\na,ovary,train,p,local\n", encoding="utf-8")
    assert "save the sheet as tab-separated text" in message(study)


def test_sheet_with_a_misspelt_column(study: Path) -> None:
    replace(study, SHEET, "slide\torgan\t", "slide\torgn\t")
    told = message(study)
    assert "unknown column 'orgn'. Did you mean 'organ'?" in told
    assert "also organ" in told


def test_sheet_without_cohorts(study: Path) -> None:
    text = (study / SHEET).read_text(encoding="utf-8")
    (study / SHEET).write_text("".join(line for line in text.splitlines(True) if "\tcohort\t" not in line))
    assert "the sheet has no slide with role 'cohort'" in message(study)


def test_unknown_dataset(study: Path) -> None:
    replace(study, SHEET, ROW, ROW.replace("synthetic\t", "dataset\tXenium_V1_hColon_Cancer_Addon_FFPE"))
    assert "Did you mean 'Xenium_V1_hColon_Cancer_Add_on_FFPE'?" in message(study)


@pytest.fixture
def local(study: Path) -> Callable[[str], str]:
    """Turn the first slide into a local one; call with the alignment's text to get the message."""
    bundle = study / "my slide"
    bundle.mkdir()
    for name in (
        "experiment.xenium",
        "cells.parquet",
        "cell_feature_matrix.h5",
        "nucleus_boundaries.parquet",
        "he.ome.tif",
    ):
        (bundle / name).touch()
    files = "\t".join(["", "my slide", "my slide/he.ome.tif", "my slide/alignment.csv"])
    replace(study, SHEET, ROW, f"ovary_1\tovary\ttrain\tovary_donor_1\tlocal\t{files}\t\n")

    def check(alignment: str) -> str:
        (bundle / "alignment.csv").write_text(alignment, encoding="utf-8")
        try:
            load(study)
        except UserError as error:
            return str(error)
        return ""

    return check


@pytest.mark.parametrize(
    "alignment",
    [
        "0,1,2\r\n-1,0,3\r\n0,0,1",
        "fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n9,2,3,9\n1,8,9,4\n",
        "1.0e0, 2, 3\n4, 5, 6\n0, 0, 1\n",
        "1,0,0\n0,1,0\n",
        "0,5;1,25;2\n-1,25;0,5;3\n0;0;1\n",
        "0 1 2\n-1 0 3\n0 0 1\n",
    ],
)
def test_local_slide(local: Callable[[str], str], alignment: str) -> None:
    assert local(alignment) == ""


@pytest.mark.parametrize(
    ("alignment", "found"),
    [
        ("1,0\n0,1\n0,0\n", "3 lines of 2 values"),
        ("one,0,0\n", "1 line of 3 values"),
    ],
)
def test_alignment_that_is_no_matrix(local: Callable[[str], str], alignment: str, found: str) -> None:
    told = local(alignment)
    assert told.startswith("The alignment is not a 3x3 matrix\n")
    for part in (f"found:      {found}", "slide 'ovary_1'", "my slide/alignment.csv", "three lines of three"):
        assert part in told


@pytest.mark.parametrize("alignment", ["0,0,0\n0,0,0\n0,0,1\n", "1,1,1\n1,1,0\n0,0,1\n"])
def test_alignment_that_cannot_be_inverted(local: Callable[[str], str], alignment: str) -> None:
    assert local(alignment).startswith("The alignment matrix cannot be inverted\n")


def test_missing_bundle_file(study: Path, local: Callable[[str], str]) -> None:
    (study / "my slide" / "cells.parquet").unlink()
    told = local("1,0,0\n0,1,0\n0,0,1\n")
    assert "a bundle lacks cells.parquet" in told
    assert "slide 'ovary_1'" in told


def test_missing_bundle_folder(study: Path, local: Callable[[str], str]) -> None:
    shutil.move(study / "my slide", study / "elsewhere")
    with pytest.raises(UserError, match="the folder or zip of a Xenium output is missing"):
        load(study)


def sheet_row(study: Path, **values: str) -> str:
    """Turn the first slide into one with these values, and return the message, empty for none."""
    columns = ("slide", "organ", "role", "patient", "source", "dataset", "path", "he", "alignment", "align")
    known = {"slide": "ovary_1", "organ": "ovary", "role": "train", "patient": "ovary_donor_1", "source": "local"}
    replace(study, SHEET, ROW, "\t".join({**known, **values}.get(column, "") for column in columns) + "\n")
    try:
        load(study)
    except UserError as error:
        return str(error)
    return ""


FILES = ("experiment.xenium", "cells.parquet", "cell_feature_matrix.h5", "nucleus_boundaries.parquet")


@pytest.fixture
def mine(study: Path) -> Path:
    """A folder of outputs: ``a/outs`` as a folder, ``X_outs.zip`` beside its H&E, and things that are none."""
    place = study / "mine"
    (place / "a/outs").mkdir(parents=True)
    (place / "two/x").mkdir(parents=True)
    (place / "two/y").mkdir()
    (place / "none").mkdir()
    for name in FILES:
        (place / "a/outs" / name).touch()
    for name in ("a/X_he_image.ome.tif", "two/x/experiment.xenium", "two/y/experiment.xenium", "X_he_image.ome.tif"):
        (place / name).touch()
    for name in ("a/X_he_imagealignment.csv", "X_he_imagealignment.csv"):
        (place / name).write_text("0,1,2\n-1,0,3\n0,0,1", encoding="utf-8")
    with zipfile.ZipFile(place / "X_outs.zip", "w") as archive:
        for name in FILES:
            archive.writestr(name, "")
    with zipfile.ZipFile(place / "letters.zip", "w") as archive:
        archive.writestr("letter.txt", "hello")
    (place / "cut.zip").write_bytes((place / "X_outs.zip").read_bytes()[:100])
    return place


@pytest.mark.parametrize(
    "values",
    [
        {"path": "mine/a"},
        {"path": "mine/X_outs.zip"},
        {"path": "mine/a/outs", "he": "mine/X_he_image.ome.tif"},
        {"path": "mine/a", "alignment": "grid"},
        {"path": "mine/a", "alignment": "1,0,5; 0,1,-3.5e1"},
        {"path": "mine/a", "alignment": "1,0,5,0,1,9,1e-9,0,1", "align": "refine"},
        {"path": "mine/a/outs", "he": "config/slides.tsv", "align": "register"},
        {"source": "dataset", "dataset": "Xenium_V1_hKidney_cancer_section"},
        {"source": "dataset", "dataset": "Xenium_V1_hKidney_cancer_section", "path": "mine/a/outs"},
    ],
)
def test_places_of_a_real_slide(study: Path, mine: Path, values: dict[str, str]) -> None:
    assert sheet_row(study, **values) == ""


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"path": "mine/none"}, ["a folder is no Xenium output", "no experiment.xenium in it or one level deeper"]),
        ({"path": "mine/two"}, ["more than one Xenium output lies in a folder", "mine/two/x and ", "mine/two/y"]),
        ({"path": "mine/letters.zip"}, ["the zip holds no Xenium output", "1 files, none of them experiment.xenium"]),
        ({"path": "mine/cut.zip"}, ["a file is no zip, or is cut off", "100 bytes"]),
        ({"path": ""}, ["a local slide names no Xenium output", "column 'path'"]),
        ({"path": "mine/a", "dataset": "X"}, ["a local slide takes no dataset", "set source to 'dataset'"]),
        ({"path": "mine/a", "he": "gone.tif"}, ["the file of column 'he' is missing", "gone.tif"]),
        ({"path": "mine/a", "alignment": "gone.csv"}, ["the file of column 'alignment' is missing", "word 'grid'"]),
        ({"path": "mine/a", "alignment": "1,0,0,0,1"}, ["a matrix has the wrong number of values", "5 in '1,0,0,0,1'"]),
        ({"path": "mine/a", "alignment": "1,0,0,0,one,0"}, ["neither a file nor a matrix", "'one' in '1,0,0,0,one,0'"]),
        ({"path": "mine/a", "alignment": "1,1,0,1,1,0"}, ["a matrix cannot be inverted", "1,1,0,1,1,0"]),
        ({"path": "mine/a/outs"}, ["no H&E image is known for a slide", "no alignment is known for a slide"]),
        (
            {"path": "mine/a/outs", "he": "config/slides.tsv", "align": "refine"},
            ["no alignment is known for a slide", "or align 'register'", "slide 'ovary_1'"],
        ),
        ({"source": "dataset"}, ["a slide names no dataset"]),
        (
            {"source": "dataset", "dataset": "Xenium_V1_hLung_cancer_section"},
            ["2 faults", "no H&E image is known for a slide", "no alignment is known", "no address of one"],
        ),
    ],
)
def test_wrong_places_of_a_real_slide(study: Path, mine: Path, values: dict[str, str], told: list[str]) -> None:
    text = sheet_row(study, **values)
    for part in (*told, f"{SHEET}, line "):
        assert part in text


def test_two_images_beside_the_output(study: Path, mine: Path) -> None:
    (mine / "a/Y_he_unaligned_image.ome.tif").touch()
    told = sheet_row(study, path="mine/a")
    assert "more than one H&E image lies beside the Xenium output" in told
    assert "found:      X_he_image.ome.tif, Y_he_unaligned_image.ome.tif" in told


def test_alignment_as_explorers_zip(study: Path, mine: Path) -> None:
    assert "The alignment archive cannot be read" in sheet_row(study, path="mine/a", alignment="mine/cut.zip")


def test_a_quote_that_is_not_closed(study: Path, mine: Path) -> None:
    assert sheet_row(study, path='"mine/a') == ""


def test_a_sheet_that_is_a_folder(study: Path) -> None:
    (study / SHEET).unlink()
    (study / SHEET).mkdir()
    assert message(study).startswith("a sheet is missing\n")


def test_every_key_is_described() -> None:
    for name in ("config", "slides"):
        schema = yaml.safe_load((REPOSITORY / f"config/schemas/{name}.schema.yaml").read_text(encoding="utf-8"))
        _check_section(schema, name)


def _check_section(schema: dict, at: str) -> None:
    assert schema.get("description"), at
    if schema.get("type") == "object":
        assert schema.get("additionalProperties") is False, at
        for key, part in schema["properties"].items():
            _check_section(part, f"{at}.{key}")


def test_the_schema_of_the_models_is_up_to_date() -> None:
    import sys

    sys.path.insert(0, str(REPOSITORY / "docs"))
    try:
        from write_models_schema import render
    finally:
        sys.path.pop(0)
    assert (REPOSITORY / "config/schemas/models.schema.yaml").read_text(encoding="utf-8") == render()
