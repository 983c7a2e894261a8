"""``annotations.json``: what pandas and the original read, any size, and files that cannot be used."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.patches import annotations
from nuclass.patches.annotations import FIELDS, peek_annotations, read_annotations, write_annotations
from patch_example import records


def table(ids: list[str], **change: object) -> pd.DataFrame:
    frame = pd.DataFrame(list(records(ids).values())).assign(**change)
    return frame.assign(cell_id=ids)


def told(path: Path, text: str | bytes, **options: object) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_annotations(path, **options)
    assert str(path) in str(error.value)
    return str(error.value)


def test_the_thirteen_fields_are_written_as_by_json(tmp_path):
    frame = table(["aa-1", "0012", 'é漢"\\'], has_padding_flags=[True, False, True])
    write_annotations(tmp_path / "a.json", frame)
    text = (tmp_path / "a.json").read_text()
    loaded = json.loads(text)
    assert text == json.dumps(loaded, indent=2) + "\n"
    assert list(loaded) == frame["cell_id"].tolist()
    assert all(tuple(record) == FIELDS for record in loaded.values())
    assert loaded["0012"] == records(["aa-1", "0012"])["0012"]
    assert loaded["aa-1"]["has_padding_flags"] is True
    assert isinstance(loaded["aa-1"]["centroid_x"], float)


def test_pandas_reads_what_is_written(tmp_path):
    frame = table(["aa-1", "ab-1", "ac-1"], centroid_x=[1 / 3, 1e5 + 0.1, -2.5])
    write_annotations(tmp_path / "a.json", frame)
    read = pd.read_json(tmp_path / "a.json", orient="index")
    assert read.index.tolist() == frame["cell_id"].tolist()
    assert read["class_id"].tolist() == frame["class_id"].tolist()
    np.testing.assert_allclose(read["centroid_x"], frame["centroid_x"], rtol=1e-9)


def test_missing_numbers_are_null(tmp_path):
    write_annotations(tmp_path / "a.json", table(["a", "b"], micron_x_centroid=[np.nan, np.inf]))
    loaded = json.loads((tmp_path / "a.json").read_text())
    assert [record["micron_x_centroid"] for record in loaded.values()] == [None, None]
    assert "micron_x_centroid" not in read_annotations(tmp_path / "a.json")
    write_annotations(tmp_path / "a.json", table(["a", "b"], micron_x_centroid=[np.nan, 2.5]))
    np.testing.assert_array_equal(read_annotations(tmp_path / "a.json")["micron_x_centroid"], [np.nan, 2.5])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=8, unique=True).filter(
        lambda ids: not set(ids) & {*FIELDS, *annotations.LABEL_FIELDS}
    ),
    label=st.text(min_size=1, max_size=10),
    x=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_and_number_comes_back(tmp_path, ids, label, x):
    write_annotations(tmp_path / "a.json", table(ids, class_id=label, centroid_x=x))
    read = read_annotations(tmp_path / "a.json")
    assert read["cell_id"].tolist() == ids
    assert (read["label"] == label).all()
    assert (read["centroid_x"] == x).all()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 61, 997])
def test_pieces_of_any_size_give_the_same(tmp_path, chunk):
    expected = records([f"{i:03d}é" for i in range(7)])
    (tmp_path / "a.json").write_text(json.dumps(expected, indent=2, ensure_ascii=False), encoding="utf-8-sig")
    assert dict(annotations._records(tmp_path / "a.json", chunk)) == expected


def test_a_large_file_is_never_in_memory(tmp_path, monkeypatch):
    """No more than two pieces of the text are held, whatever its length."""
    write_annotations(tmp_path / "a.json", table([str(i) for i in range(3000)]))
    held = []
    more = annotations._Text._more

    def watched(self):
        result = more(self)
        held.append(len(self._buffer))
        return result

    monkeypatch.setattr(annotations._Text, "_more", watched)
    assert sum(1 for _ in annotations._records(tmp_path / "a.json", 10_000)) == 3000
    assert len(held) > 100
    assert max(held) < 20_000


def test_peek_reads_the_first_record_alone(tmp_path):
    text = json.dumps(records(["0007", "b"], class_id=None, cell_type="T"))
    (tmp_path / "a.json").write_text(text[: text.index('"b"')] + "no json from here" + " " * 100_000)
    first = peek_annotations(tmp_path / "a.json")
    assert (first["cell_id"], first["label"], first["micron_per_pixel"]) == ("0007", "T", 0.25)


@pytest.mark.parametrize("name", annotations.LABEL_FIELDS)
def test_labels_under_other_names(tmp_path, name):
    made = records(["a", "b"], class_id=None)
    made["a"][name], made["b"][name] = "T", 3
    (tmp_path / "a.json").write_text(json.dumps(made))
    assert read_annotations(tmp_path / "a.json")["label"].tolist() == ["T", "3"]


def test_the_first_of_several_labels_counts(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(records(["a"], label="second", annotation="last")))
    assert read_annotations(tmp_path / "a.json")["label"].tolist() == ["Tumour"]


def test_columns_are_there_where_the_file_has_them(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(records(["a", "b"], slide_id=None, micron_per_pixel=None)))
    read = read_annotations(tmp_path / "a.json")
    assert list(read) == ["cell_id", "label", "tissue_type", "patient_id", "centroid_x", "centroid_y",
                          "micron_x_centroid", "micron_y_centroid"]  # fmt: skip
    assert read["centroid_y"].dtype == np.float64


ONE = json.dumps(records(["a"])["a"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["are not one object of records", "an empty file"]),
        ("{}", ["hold no cell"]),
        ("[" + ONE + "]", ["are not one object of records", "it begins with '['", 'orient="index"']),
        ('{"class_id": {"a": "T"}}', ["are not one object of records", "the field 'class_id' in place of a cell id"]),
        ('{"a": 3}', ["are not one object of records", "under 'a' no record but 3"]),
        ('{"a": ' + ONE, ["are not valid JSON", "its end in the middle", "it may be cut off"]),
        ('{"a": ' + ONE[:-9], ["are not valid JSON", "its end in the middle"]),
        ('{"a": ' + ONE + ' "b": ' + ONE + "}", ["are not valid JSON", "in place of , or } at character"]),
        ('{"a": {"x": tru e, "y": "' + "z" * 99 + '"}}', ["are not valid JSON", "Expecting value at character 12"]),
        (b'{"a\xff": ' + ONE.encode() + b"}", ["are not text", "JSON in UTF-8"]),
        ('{"b": ' + ONE + ', "a": ' + ONE + ', "b": ' + ONE + "}", ["Cell ids repeat", "1 repeats, among them b"]),
        (json.dumps(records(["a", "b"], centroid_x="7.5")), ["is no number", "cell a, centroid_x", "'7.5'"]),
        (json.dumps(records(["a"], centroid_x=10**400)), ["is no number", "cell a", "of more than 300 digits"]),
        (json.dumps(records(["a"], centroid_x="x" * 999)), ["is no number", "'" + "x" * 59 + "\n"]),
        (
            '{"a": ' + ONE + ",\n}",
            [f"a comma before the closing brace at character {len(ONE) + 8}\n"],
        ),
        ('{"a": ' + ONE + '}\n{"b": ' + ONE + "}", ["are not valid JSON", "more text after the closing brace"]),
        ("{} 7", ["are not valid JSON", "more text after the closing brace, at character 3"]),
        ('{"a": ' + "[" * 100_000, ["are not valid JSON", "values nested too deep at character 6"]),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, words):
    message = told(tmp_path / "a.json", text)
    for word in words:
        assert word in message


def test_missing_fields_are_counted(tmp_path):
    made = records(["a", "b", "c"])
    del made["b"]["centroid_x"], made["c"]["centroid_x"], made["c"]["centroid_y"]
    message = told(tmp_path / "a.json", json.dumps(made))
    assert "Fields of the annotations are missing" in message
    assert "centroid_x: missing in 2 of 3, first b; centroid_y: missing in 1 of 3, first c" in message
    assert "class_id, label" not in message
    assert "tissue_type: missing in 3 of 3" in told(
        tmp_path / "a.json", json.dumps(records(["a", "b", "c"], tissue_type=None)), required=("tissue_type",)
    )


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_cells_without_a_label(tmp_path, nothing):
    """Some may have none, however that is written; a file without any is a mistake."""
    made = records(["a", "b", "c"])
    made["b"]["class_id"] = nothing
    (tmp_path / "a.json").write_text(json.dumps(made))
    assert read_annotations(tmp_path / "a.json")["label"].tolist() == ["Tumour", "", "Tumour"]
    made["b"]["cell_type"] = "T"
    (tmp_path / "a.json").write_text(json.dumps(made))
    assert read_annotations(tmp_path / "a.json")["label"].tolist() == ["Tumour", "T", "Tumour"]
    for record in made.values():
        record |= {"class_id": nothing, "cell_type": nothing}
    message = told(tmp_path / "a.json", json.dumps(made))
    assert "label: missing in 3 of 3, first a" in message
    assert "class_id, label, cell_type, type, annotation" in message


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match="The annotations may not be read"):
        read_annotations(tmp_path / "a.json")


def test_what_cannot_be_written(tmp_path):
    for frame, word in (
        (table(["a"]).drop(columns="class_id"), "no class_id"),
        (table(["a", "b"]).assign(cell_id="a"), "1 repeats, among them a"),
        (table(["a"]).iloc[:0], "0 cells"),
    ):
        with pytest.raises(UserError, match=word):
            write_annotations(tmp_path / "a.json", frame)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fails(column):
        raise RuntimeError("stopped")

    monkeypatch.setattr(annotations, "_encoded", fails)
    with pytest.raises(RuntimeError):
        write_annotations(tmp_path / "a.json", table(["a"]))
    assert list(tmp_path.iterdir()) == []


def test_pandas_index_orientation_written_by_pandas_is_read(tmp_path):
    frame = table(["0001", "x"]).set_index("cell_id")
    buffer = io.StringIO()
    frame.to_json(buffer, orient="index")
    (tmp_path / "a.json").write_text(buffer.getvalue())
    assert read_annotations(tmp_path / "a.json")["cell_id"].tolist() == ["0001", "x"]
