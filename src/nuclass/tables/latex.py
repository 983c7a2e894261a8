"""Tables as LaTeX that needs the package booktabs and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from nuclass.tables.layout import EMPTY, Cell, Column, Grid, Table

MAX_LINES = 45
"""Lines of one float; a longer grid goes on in the next."""
_SIZES = ((70, r"\small"), (80, r"\footnotesize"))
_LARGEST = 88
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma sigma tau upsilon phi "
    "chi psi omega"
)
_LATIN = {"alpha": "A", "beta": "B", "epsilon": "E", "zeta": "Z", "eta": "H", "iota": "I", "kappa": "K", "mu": "M",
          "nu": "N", "o": "O", "rho": "P", "tau": "T", "chi": "X"}  # fmt: skip


def _greek() -> Iterator[tuple[str, str]]:
    r"""Yield each Greek letter with its LaTeX in math; capitals that look like Latin ones are these."""
    for place, name in enumerate(_GREEK.split()):
        yield chr(0x3B1 + place), "o" if name == "o" else rf"\{name}"
        if name != "varsigma":
            yield chr(0x391 + place), rf"\mathrm{{{_LATIN[name]}}}" if name in _LATIN else rf"\{name.capitalize()}"


_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "''",
    EMPTY: "--",
    "—": "---",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "√": r"$\surd$",
    "→": r"$\rightarrow$",
    "µ": r"$\mu$",
    "°": r"$^{\circ}$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "≈": r"$\approx$",
    **{sign: f"$^{{{n}}}$" for n, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{sign: f"$_{{{n}}}$" for n, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    "⁺": r"$^{+}$",
    "⁻": r"$^{-}$",
    **{letter: f"${name}$" for letter, name in _greek()},
    "\u2212": r"$-$",
    "\u00a0": "~",
    "\n": " ",
}
_SIGN = re.compile(r"(?<![\w.)])[-+](?=\d)|(?<= )-(?= )")
_MARKUP = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|(?<!\w)\*(?!\s)([^*]+?)(?<!\s)\*(?!\w)")


def escape(text: str) -> str:
    r"""Return plain text as LaTeX: every character that means something is escaped, signs of numbers are in math.

    Characters that LaTeX has no command for in plain text stay: since 2018 it reads UTF-8.
    """
    text = text.replace(">=", "≥").replace("<=", "≤")
    parts = []
    start = 0
    for found in _SIGN.finditer(text):
        parts += ["".join(_CHARACTERS.get(c, c) for c in text[start : found.start()]), f"${found[0]}$"]
        start = found.end()
    return "".join([*parts, *(_CHARACTERS.get(c, c) for c in text[start:])])


def prose(text: str) -> str:
    """Return a note as LaTeX: code in backticks, and words between one or two asterisks, keep their look."""
    parts = []
    start = 0
    for found in _MARKUP.finditer(text):
        parts.append(escape(text[start : found.start()]))
        code, bold, slanted = found.groups()
        command, inner = next((c, t) for c, t in (("texttt", code), ("textbf", bold), ("emph", slanted)) if t)
        parts.append(f"\\{command}{{{escape(inner)}}}")
        start = found.end()
    return "".join([*parts, escape(text[start:])])


def to_latex(table: Table, name: str, *, synthetic: bool = False, flaws: str = "") -> str:
    r"""Return a table as LaTeX: one ``table`` a grid, each with caption and label, that needs only booktabs.

    The notes stand below the first grid; the captions of the others point to it. A grid longer than
    :data:`MAX_LINES` lines goes on in further floats.

    Parameters
    ----------
    name
        Of the labels: ``tab:name``, then ``tab:name-2`` and so on.
    synthetic, flaws
        As in :func:`nuclass.tables.layout.save_table`; every float tells both.
    """
    above, below = table.told(synthetic=synthetic, flaws=flaws)
    pieces = [piece for part in table.grids for piece in _pieces(part)]
    too_wide = any(_width(part) > _LARGEST for part, _ in pieces)
    lines = ["% Needs \\usepackage{booktabs}."]
    if too_wide:
        lines.append("% Wider than the text of a plain article: for narrow margins, or a landscape page.")
    floats = []
    for place, (part, more) in enumerate(pieces):
        label = f"tab:{name}" + (f"-{place + 1}" if place else "")
        what = part.caption or part.heading
        caption = f"{table.title}{f': {_lower(what)}' if what else ''}{', continued' if more else ''}."
        bold = [flaws] * bool(flaws) if place else above
        told = [escape(caption), *(f"\\textbf{{{prose(text)}}}" for text in bold)]
        told += ["Synthetic study."] if synthetic and place else []
        told += [f"Notes: Table~\\ref{{tab:{name}}}."] if below and place else []
        floats.append(_float(part, " ".join(told), label, [] if place else below))
    if not floats:
        floats = [" ".join([escape(f"{table.title}."), *map(prose, (*above, *below))])]
    return "\n".join(lines) + "\n\n" + "\n\n".join(floats) + "\n"


def _lower(heading: str) -> str:
    return heading[:1].lower() + heading[1:] if heading[1:2].islower() else heading


def _pieces(part: Grid) -> list[tuple[Grid, bool]]:
    """Return a grid in pieces that fit a page, each with whether it goes on from another."""
    pieces: list[list[Mapping[str, Cell]]] = [[]]
    used = 0
    for row in part.rows:
        lines = max((_lines(row[c.name], c) for c in part.columns), default=1)
        if pieces[-1] and used + lines > MAX_LINES:
            pieces.append([])
            used = 0
        pieces[-1].append(row)
        used += lines
    return [(replace(part, rows=tuple(rows)), place > 0) for place, rows in enumerate(pieces)]


def _lines(cell: Cell, column: Column) -> int:
    """Return about how many lines the text of a cell takes."""
    return math.ceil(len(cell.text) / (column.width * _LARGEST)) if column.width else 1


def _float(part: Grid, caption: str, label: str, notes: list[str]) -> str:
    size = next((size for most, size in _SIZES if _width(part) <= most), r"\scriptsize\setlength{\tabcolsep}{3pt}")
    body = _tabular(part) if part.rows else [prose(part.empty)]
    lines = [r"\begin{table}[htbp]", r"\centering", f"\\caption{{{caption}}}", f"\\label{{{label}}}", f"{{{size}"]
    lines += [*body, "}"]
    if notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}", r"\footnotesize"]
        lines += ["\n\n".join(map(prose, notes)), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"])


def _tabular(part: Grid) -> list[str]:
    shape = "".join(f"p{{{c.width:g}\\linewidth}}" if c.width else "l" if c.left else "r" for c in part.columns)
    head = " & ".join(escape(column.name) for column in part.columns)
    lines = [f"\\begin{{tabular}}{{@{{}}{shape}@{{}}}}", r"\toprule", head + r" \\", r"\midrule"]
    lines += [
        " & ".join(_cell(row[column.name], wraps=column.width > 0) for column in part.columns) + r" \\"
        for row in part.rows
    ]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _cell(cell: Cell, *, wraps: bool) -> str:
    text = escape(cell.text)
    text = f"\\texttt{{{text}}}" if cell.code else text
    text = f"\\textbf{{{text}}}" if cell.bold else text
    # The mark takes no width, so that numbers stay below each other.
    text += f"\\rlap{{{escape(cell.mark)}}}" if cell.mark else ""
    if text.startswith(("[", "*")):
        # At the start of a row these would be taken as arguments of the break before it.
        text = f"{{}}{text}"
    return f"{{\\raggedright {text}\\par}}" if wraps else text


def _width(part: Grid) -> float:
    """Return about how many characters wide the grid is, its gaps as two."""
    total = 0.0
    for column in part.columns:
        longest = max([len(column.name), *(len(row[column.name].text) for row in part.rows)], default=0)
        total += (column.width * _LARGEST if column.width else longest) + 2
    return total - 2
