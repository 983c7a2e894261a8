"""Small tables of the repository, as the library reads them."""

from __future__ import annotations

from nuclass.core.sheets import read_table


def test_rows_by_column_without_remarks(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text("\ufeff# a remark\n\na\tb\tc\n1\t2\t3\n# another\n4\t\n\n", encoding="utf-8")
    assert read_table(file) == [{"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": ""}]


def test_no_table_and_no_rows_are_nothing(tmp_path):
    assert read_table(tmp_path / "gone.tsv") == []
    for text in ("", "# only a remark\n", "a\tb\n"):
        (tmp_path / "a.tsv").write_text(text)
        assert read_table(tmp_path / "a.tsv") == []
