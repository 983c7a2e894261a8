"""Tables of a test, saved in all three forms; a strict reader of the LaTeX that they may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from nuclass.core.class_names import class_title
from nuclass.tables.layout import Table, save_table

COMMANDS = frozenset(
    r"""begin end caption label ref centering small footnotesize scriptsize setlength tabcolsep par smallskip linewidth
    raggedright toprule midrule bottomrule textbf texttt emph rlap textbackslash textasciitilde textasciicircum
    pm times cdot le ge surd rightarrow gamma alpha mu circ dagger ddagger""".split()
)
"""All of LaTeX's own but the three rules, which are booktabs'."""


def lay_out(table: Table, base: Path, *, synthetic: bool = False, flaws: str = "") -> str:
    """Save a table as ``base.csv .md .tex``, check the LaTeX and return the Markdown."""
    csv, md, tex = (base.with_suffix(ending) for ending in (".csv", ".md", ".tex"))
    save_table(table, csv, md, tex, synthetic=synthetic, flaws=flaws)
    check_tex(tex.read_text(encoding="utf-8"))
    return md.read_text(encoding="utf-8")


def rows(md: Path) -> list[list[str]]:
    """Return the cells of all grids of a Markdown file, line by line."""
    lines = md.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


def check_tex(text: str) -> list[list[list[str]]]:
    """Fail where LaTeX would not compile it with booktabs alone; return the cells of each tabular."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"\usepackage{booktabs}" in text.splitlines()[0]
    environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name, f"{name} ends where another is open"
    assert not environments, f"left open: {environments}"
    assert set(re.findall(r"\\([a-zA-Z]+)", body)) <= COMMANDS
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", body.replace(r"\\", "")):
        depth += 1 if sign == "{" else -1
        assert depth >= 0, "a brace is closed that is not open"
    assert depth == 0, "a brace stays open"
    labels = re.findall(r"\\label\{([^}]*)\}", body)
    assert len(set(labels)) == len(labels)
    assert set(re.findall(r"\\ref\{([^}]*)\}", body)) <= set(labels)
    _check_specials(body)
    return [_check_tabular(*found) for found in re.findall(_TABULAR, body, re.S)]


_TABULAR = r"\\begin\{tabular\}\{@\{\}((?:[lr]|p\{[\d.]+\\linewidth\})+)@\{\}\}\n(.*?)\\end\{tabular\}"


def _check_specials(body: str) -> None:
    """Fail at a character that means something to LaTeX and stands in plain text."""
    plain = re.sub(r"\\(?:label|ref|begin|end|setlength)\{[^}]*\}|Table~", "", body)
    plain = re.sub(_COLUMNS, "", plain)
    plain = re.sub(r"\\\\\n|\\[&%$#_{}]", "", plain)
    plain = plain.replace(r"\textbackslash", "")
    for line in plain.splitlines():
        assert line.count("$") % 2 == 0, f"mathematics stays open: {line}"
        outside = "".join(line.split("$")[::2])
        found = re.findall(r'[%#_~^<>|"\x00-\x08\x0b-\x1f†‡±µ°–—≤≥√]', outside)
        assert not found, f"{found} in plain text: {line}"
        for inside in line.split("$")[1::2]:
            assert re.fullmatch(r"[-+<>|]|\\[a-z]+|\^\{(2|\\circ|\\d?dagger)\}", inside), inside


_COLUMNS = r"\{@\{\}(?:[lr]|p\{[\d.]+\\linewidth\})+@\{\}\}"


def _check_tabular(columns: str, body: str) -> list[list[str]]:
    width = len(re.sub(r"\{[^}]*\}", "", columns))
    lines = body.strip().splitlines()
    assert lines[0] == r"\toprule"
    assert lines[2] == r"\midrule"
    assert lines[-1] == r"\bottomrule"
    found = []
    for line in [lines[1], *lines[3:-1]]:
        assert line.endswith(r" \\"), line
        cells = re.split(r"(?<!\\)&", line[:-3])
        assert len(cells) == width, f"{len(cells)} cells in a row of {width}: {line}"
        found.append([cell.strip() for cell in cells])
    return found


def follows_the_sheet(lay: Callable[[Path], Table], folder: Path, names: Sequence[str]) -> bool:
    """Return whether a table has the classes in the order of the sheet that it is given, whichever that is."""
    for order in (list(names), list(names)[::-1]):
        sheet = folder / "classes.tsv"
        sheet.write_text("class\tgroup\n" + "".join(f"{name}\t{name}\n" for name in order), encoding="utf-8")
        lay_out(lay(sheet), folder / "ordered")
        titles = [class_title(name) for name in order]
        found = dict.fromkeys(row[0] for row in rows(folder / "ordered.md") if row[0] in titles)
        if list(found) != titles:
            return False
    return True
