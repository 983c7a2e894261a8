"""What a table is and how it is rendered: cells, the best of a column, Markdown and LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.core.readings import BETTER, HIGHER, LOWER
from nuclass.tables.latex import MAX_LINES, escape, prose, to_latex
from nuclass.tables.layout import Cell, Column, Grid, Table, difference, grid, mark_best, share, to_markdown
from table_example import check_tex, lay_out

REPOSITORY = Path(__file__).parents[1]
DATA = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell(1234), "1,234"),
        (Cell(np.int64(1234)), "1,234"),
        (Cell(0.12345), "0.123"),
        (Cell(1234.5, digits=1), "1,234.5"),
        (Cell(np.float64(2)), "2.000"),
        (Cell(None), "–"),
        (Cell(float("nan")), "–"),
        (Cell(""), "–"),
        (Cell(True), "yes"),
        (Cell(0.5, 0.4, 0.6), "0.500 (0.400 to 0.600)"),
        (Cell(0.5, 0.4, float("nan")), "0.500"),
        (Cell(0.5, 0.4, 0.6, spread=0.01), "0.500 ± 0.010 (0.400 to 0.600)"),
        (Cell(-0.05, -0.1, 0.01, sign=True), "-0.050 (-0.100 to +0.010)"),
        (Cell(0.0, None, None, sign=True), "+0.000"),
        (Cell(448, unit="px"), "448 px"),
        (Cell(12, behind="4.5 %"), "12 (4.5 %)"),
        (Cell(None, behind="4"), "–"),
        (share(0.1234), "12.3 %"),
        (share(1, 3), "33.3 %"),
        (share(1, 0), "–"),
        (share(None), "–"),
        (difference(float("nan")), "–"),
    ],
)
def test_a_cell_as_text(cell: Cell, text: str) -> None:
    assert cell.text == text


def test_a_difference_is_bold_where_its_interval_leaves_out_0() -> None:
    assert difference(0.1, 0.01, 0.2).bold
    assert difference(-0.1, -0.2, -0.01).bold
    assert not difference(0.1, -0.01, 0.2).bold
    assert not difference(0.1, 0.0, 0.2).bold
    assert not difference(0.1).bold


def bold(cells: dict[str, Cell]) -> list[str]:
    return [name for name, cell in cells.items() if cell.bold]


def near(cells: dict[str, Cell]) -> list[str]:
    return [name for name, cell in cells.items() if cell.near]


def unknown(cells: dict[str, Cell]) -> list[str]:
    return [name for name, cell in cells.items() if cell.unknown]


def test_the_best_is_the_best_point_value() -> None:
    cells = {"a": Cell(0.8, 0.7, 0.9), "b": Cell(0.7, 0.6, 0.95), "c": Cell(0.9, 0.1, 0.95), "d": Cell(None)}
    assert bold(mark_best(cells, HIGHER)) == ["c"]
    assert bold(mark_best(cells, LOWER)) == ["b"]
    assert near(mark_best(cells)) == [], "where no difference is known it is not claimed, though intervals overlap"
    assert unknown(mark_best(cells)) == ["a", "b"], "the one without a value is compared with nothing"


def test_what_shows_the_same_digits_is_bold_as_well() -> None:
    cells = {"a": Cell(0.8001), "b": Cell(0.8004), "c": Cell(0.7994)}
    assert bold(mark_best(cells)) == ["a", "b"]
    assert bold(mark_best({name: Cell(cell.value, digits=4) for name, cell in cells.items()})) == ["b"]


def test_only_a_known_difference_to_the_best_that_includes_0_is_marked() -> None:
    cells = {name: Cell(value) for name, value in {"a": 0.8, "b": 0.79, "c": 0.78, "d": 0.77, "e": 0.76}.items()}
    paired = {("a", "b"): (-0.01, 0.03), ("c", "a"): (-0.03, 0.01), ("a", "d"): (0.01, 0.05), ("b", "e"): (-1.0, 1.0)}
    marked = mark_best(cells, HIGHER, paired)
    assert bold(marked) == ["a"]
    assert near(marked) == ["b", "c"], "either order will do; d is worse, of e only the difference to another is known"
    assert unknown(marked) == ["e"]
    assert [cell.mark for cell in marked.values()] == ["", "†", "†", "", "‡"]
    no_ends = mark_best(cells, HIGHER, {("a", "b"): (float("nan"), float("nan"))})
    assert near(no_ends) == []
    assert unknown(no_ends) == ["b", "c", "d", "e"]


def test_one_value_is_no_comparison() -> None:
    assert bold(mark_best({"a": Cell(0.8), "b": Cell("–"), "c": Cell(float("nan"))})) == []


def test_which_way_is_better_is_told_of_every_metric() -> None:
    assert {name for name, way in BETTER.items() if way == LOWER} == {"log_loss", "brier", "ece"}


def example() -> Table:
    scores = {"Local": Cell(0.7, 0.65, 0.75), "Global": Cell(0.8, 0.75, 0.85), "Fused_1": Cell(0.79, 0.74, 0.84)}
    scores = mark_best(scores, HIGHER, {("Fused_1", "Global"): (-0.02, 0.01)})
    rows = [{"model": name, "F1 (%)": cell, "of": Cell("a|b & c", code=False)} for name, cell in scores.items()]
    gaps = [{"switch": Cell("no_buffer", code=True), "change": difference(-0.1, -0.2, -0.05)}]
    grids = [
        grid(rows, texts=["of"], heading="Scores"),
        grid(gaps, caption="Scores, differences"),
        grid([], heading="Nothing", empty="There is `none_here`."),
    ]
    return Table("My table", DATA, grids, ["Of *the* runs in `a_b`, 5 % < 6."], lead="Take care.")


MARKDOWN = """# My table

**1 flaw is on: no_buffer.**

**Take care.**

## Scores

| model | F1 (%) | of |
| :--- | ---: | :--- |
| Local | 0.700 (0.650 to 0.750) ‡ | a\\|b & c |
| Global | **0.800 (0.750 to 0.850)** | a\\|b & c |
| Fused_1 | 0.790 (0.740 to 0.840) † | a\\|b & c |

| switch | change |
| :--- | ---: |
| `no_buffer` | **-0.100 (-0.200 to -0.050)** |

## Nothing

There is `none_here`.

Of *the* runs in `a_b`, 5 % < 6.

†: not told apart from the best, for the 95 % interval of the paired difference to it includes 0. ‡: that \
interval is not known. Without a mark it leaves out 0.

Synthetic study: these numbers say whether the method works as designed, not how well it does on tissue.
"""

LATEX = r"""% Needs \usepackage{booktabs}.

\begin{table}[htbp]
\centering
\caption{My table: scores. \textbf{1 flaw is on: no\_buffer.} \textbf{Take care.}}
\label{tab:mine}
{\small
\begin{tabular}{@{}lrl@{}}
\toprule
model & F1 (\%) & of \\
\midrule
Local & 0.700 (0.650 to 0.750)\rlap{$^{\ddagger}$} & a$|$b \& c \\
Global & \textbf{0.800 (0.750 to 0.850)} & a$|$b \& c \\
Fused\_1 & 0.790 (0.740 to 0.840)\rlap{$^{\dagger}$} & a$|$b \& c \\
\bottomrule
\end{tabular}
}
\par\smallskip
\begin{minipage}{\linewidth}
\footnotesize
Of \emph{the} runs in \texttt{a\_b}, 5 \% $<$ 6.

$^{\dagger}$: not told apart from the best, for the 95 \% interval of the paired difference to it includes 0. @@
$^{\ddagger}$: that interval is not known. Without a mark it leaves out 0.

Synthetic study: these numbers say whether the method works as designed, not how well it does on tissue.
\end{minipage}
\end{table}

\begin{table}[htbp]
\centering
\caption{My table: scores, differences. \textbf{1 flaw is on: no\_buffer.} Synthetic study. @@
Notes: Table~\ref{tab:mine}.}
\label{tab:mine-2}
{\small
\begin{tabular}{@{}lr@{}}
\toprule
switch & change \\
\midrule
\texttt{no\_buffer} & \textbf{$-$0.100 ($-$0.200 to $-$0.050)} \\
\bottomrule
\end{tabular}
}
\end{table}

\begin{table}[htbp]
\centering
\caption{My table: nothing. \textbf{1 flaw is on: no\_buffer.} Synthetic study. @@
Notes: Table~\ref{tab:mine}.}
\label{tab:mine-3}
{\small
There is \texttt{none\_here}.
}
\end{table}
""".replace("@@\n", "")


def test_a_table_in_its_three_forms(tmp_path) -> None:
    told = lay_out(example(), tmp_path / "mine", synthetic=True, flaws="1 flaw is on: no_buffer.")
    assert told == MARKDOWN
    assert (tmp_path / "mine.tex").read_text(encoding="utf-8") == LATEX
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "mine.csv"), DATA)


def test_a_plain_study_says_nothing_of_flaws_or_synthesis() -> None:
    told = to_markdown(Table("T", DATA, [grid([{"a": 1}])]))
    assert told == "# T\n\n| a |\n| :--- |\n| 1 |\n"
    assert "ynthetic" not in to_latex(Table("T", DATA, [grid([{"a": 1}])]), "t")


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"a\b", r"a\textbackslash{}b"),
        ("50 % of A&B, $3 #1 x_y {z}", r"50 \% of A\&B, \$3 \#1 x\_y \{z\}"),
        ("~50/50, 2^3", r"\textasciitilde{}50/50, 2\textasciicircum{}3"),
        ("a < b > c | d", r"a $<$ b $>$ c $|$ d"),
        (">= 0.9", r"$\ge$ 0.9"),
        ("-0.1 (-0.2 to +0.3)", r"$-$0.1 ($-$0.2 to $+$0.3)"),
        ("UNI2-h, 2-3, 1 - p", "UNI2-h, 2-3, 1 $-$ p"),
        ("0.1 ± 0.2 µm, 90°, √2 – none", r"0.1 $\pm$ 0.2 $\mu$m, 90$^{\circ}$, $\surd$2 -- none"),
        ('say "yes"', "say ''yes''"),
        ("Übergröße", "Übergröße"),
    ],
)
def test_text_is_escaped(text: str, latex: str) -> None:
    assert escape(text) == latex


def test_notes_keep_their_look_and_lone_asterisks_stay() -> None:
    assert prose("a `b_c` **d_e** *f g*, 1 * 2, marked with * and") == (
        r"a \texttt{b\_c} \textbf{d\_e} \emph{f g}, 1 * 2, marked with * and"
    )


def test_a_long_grid_goes_on_in_further_floats() -> None:
    rows = [{"n": place, "why": "word " * 60} for place in range(MAX_LINES)]
    tabulars = check_tex(to_latex(Table("Long", DATA, [grid(rows, wide={"why": 0.5})]), "long"))
    assert len(tabulars) > 5, "a cell that wraps takes more than a line"
    assert [row[0] for body in tabulars for row in body[1:]] == [str(place) for place in range(MAX_LINES)]
    assert len(check_tex(to_latex(Table("L", DATA, [grid([{"n": i} for i in range(MAX_LINES)])]), "l"))) == 1
    text = to_latex(Table("L", DATA, [grid([{"n": i} for i in range(MAX_LINES + 1)])]), "l")
    assert r"\caption{L, continued.}" in text


def test_a_wide_table_says_so() -> None:
    rows = [{f"column {place}": Cell(0.5, 0.4, 0.6) for place in range(6)}]
    assert "landscape" in to_latex(Table("W", DATA, [grid(rows)]), "w")


def test_a_row_with_other_columns_is_refused() -> None:
    with pytest.raises(UserError, match="other columns"):
        Grid((Column("a"),), ({"b": Cell(1)},))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (r"\end{tabular}", ""),
        (r"F1 (\%)", "F1 (%)"),
        (r"no\_buffer.", "no_buffer."),
        ("Local & ", "Local "),
        (r"\emph{the}", r"\emph{the"),
        (r"\textbf{Take", r"\textcolor{Take"),
        ("$<$ 6", "< 6"),
        ("{tab:mine-2}", "{tab:mine}"),
        (r"\ref{tab:mine}", r"\ref{tab:none}"),
        ("$<$ 6", "$<  6"),
    ],
)
def test_the_strict_reader_is_strict(right: str, wrong: str) -> None:
    check_tex(LATEX)
    assert right in LATEX
    with pytest.raises((AssertionError, IndexError)):
        check_tex(LATEX.replace(right, wrong, 1))


def test_every_table_of_the_workflow_comes_in_three_forms() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "rules").glob("*.smk")))
    rules = dict(re.findall(r"rule tabulate_(\w+):\n(.*?)(?=\nrule |\n    rule |\Z)", text, re.S))
    assert len(rules) > 20
    for name, rule in rules.items():
        assert f'md="results/tables/{name}.md"' in rule, name
        assert f'tex="results/tables/{name}.tex"' in rule, name
        script = (REPOSITORY / "scripts" / f"tabulate_{name}.py").read_text(encoding="utf-8")
        assert "save_table(table, made.csv, made.md, made.tex" in script, name


def test_no_table_lays_out_markdown_or_latex_by_hand() -> None:
    for path in (REPOSITORY / "src/nuclass/tables").glob("*.py"):
        if path.name not in ("layout.py", "latex.py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r'"\| |f?"\*\*|\\textbf', text), path.name


@pytest.mark.parametrize("name", ["[x] a", "* a"])
def test_a_row_does_not_begin_with_what_the_break_before_it_would_take(name: str) -> None:
    text = to_latex(Table("Odd", DATA, [grid([{"n": "a", "why": "b"}, {"n": name, "why": "b"}])]), "odd")
    assert f"{{}}{name} & b" in text


def test_the_note_tells_of_the_marks_that_are_used() -> None:
    def told(**marks: bool) -> str:
        return to_markdown(Table("T", DATA, [grid([{"a": Cell(0.5, **marks)}])])).split("\n\n", 2)[2].strip()

    assert told(unknown=True) == (
        "‡: the 95 % interval of the paired difference to the best is not known. Without a mark it leaves out 0."
    )
    assert told(near=True) == (
        "†: not told apart from the best, for the 95 % interval of the paired difference to it includes 0. "
        "Without a mark it leaves out 0."
    )
