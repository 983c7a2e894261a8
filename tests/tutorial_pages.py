"""The tutorials of docs/: their blocks of commands, and a runner that gives them in order, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / "docs" / "tutorials"
PAGES = tuple(sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index"))
RUN = ("sh", "console", "python")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- not run: (.+?) -->\n$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts at, and why it is not run (empty: it is)."""

    language: str
    text: str
    line: int
    not_run: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a tutorial that hold commands or Python."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        line = text[: match.start()].count("\n") + 1
        found.append(Block(match[1], match[2], line, mark[1] if mark else ""))
    return [block for block in found if block.language in RUN]


def environment() -> dict[str, str]:
    """Return a reader's environment: the tools of this Python come first, one thread a program."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
    tools = str(Path(sys.executable).parent)
    return {**kept, "PATH": f"{tools}{os.pathsep}{kept.get('PATH', '')}", "OMP_NUM_THREADS": "1"}


def commands_of(block: Block) -> str:
    """Return the commands of a block; of a ``console`` block the lines behind a ``$``."""
    if block.language != "console":
        return block.text
    return "".join(f"{line[2:]}\n" for line in block.text.splitlines() if line.startswith("$ "))


def run(block: Block, folder: Path, limit_s: float = 1200) -> str:
    """Run a block in a folder and return what it said; a failure is an error that shows the block and all it said."""
    call = [sys.executable, "-"] if block.language == "python" else ["bash", "-euo", "pipefail", "-s"]
    done = subprocess.run(
        call, cwd=folder, env=environment(), input=commands_of(block), capture_output=True, text=True, timeout=limit_s
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, f"line {block.line} ended with {done.returncode}:\n{block.text}\n{told}"
    return told


def run_page(page: str, folder: Path) -> list[str]:
    """Run all blocks of a tutorial that are not marked; returns what each said."""
    return [run(block, folder) for block in blocks(page) if not block.not_run]
