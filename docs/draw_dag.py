"""Draw the rules of the workflow as a Mermaid block into README.md (make dag)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
HIDDEN = {"all", "report", "demo"}
GATHERED = {
    "draw_": "figures",
    "tabulate_": "tables",
    "record_": "report_html",
    "render_": "report_html",
    "write_methods": "report_html",
}


def rule_graph() -> list[tuple[str, str]]:
    """Return the edges between rules, as Snakemake sees them for the goal ``demo``."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--nolock",
        "--forceall",
        "--rulegraph",
        "dot",
        "--quiet",
        "all",
        "--",
        "demo",
    ]
    dot = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'^\s*(\d+)\s*\[\s*label = "([^"]+)"', dot, re.MULTILINE))
    edges = [(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)", dot, re.MULTILINE)]
    shown = {(_shown(a), _shown(b)) for a, b in edges if not HIDDEN & {a, b}}
    return sorted((a, b) for a, b in shown if a != b)


def _shown(rule: str) -> str:
    """Return the box a rule is drawn in: its own, or one for all figures, all tables, the report."""
    return next((box for start, box in GATHERED.items() if rule.startswith(start)), rule)


def reduced(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out an edge where a longer way joins the same two rules."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        todo = list(after.get(start, ()))
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo.extend(after.get(name, ()))
        return found

    beyond = {name: set().union(*(reachable(step) for step in steps)) for name, steps in after.items()}
    return [(a, b) for a, b in edges if b not in beyond[a]]


def mermaid(edges: list[tuple[str, str]]) -> str:
    """Return the graph as a Mermaid flow chart."""
    lines = ["```mermaid", "flowchart LR"]
    lines += [f"    {a} --> {b}" for a, b in reduced(edges)]
    return "\n".join([*lines, "```"])


def main() -> None:
    """Replace the block between the two marks in README.md."""
    text = README.read_text(encoding="utf-8")
    start, end = "<!-- dag: make dag -->", "<!-- end of dag -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    README.write_text(f"{before}{start}\n{mermaid(rule_graph())}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
