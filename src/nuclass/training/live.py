"""Numbers of a run while it goes: a growing ``metrics.csv``, and TensorBoard or W&B where they are asked for."""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def check_logger(name: str) -> None:
    """Raise where the package of a logger is not installed."""
    packages = _PACKAGES.get(name, ())
    if packages and not any(find_spec(package) for package in packages):
        raise UserError(
            "The package of a logger is not installed",
            where="trainer.logger",
            found=name,
            fix=f"pip install {packages[0]}, or set logger: csv",
        )


class LiveCsv:
    """A CSV file to which a row is added at once; columns that come up later are added to all rows.

    Parameters
    ----------
    path
        The file; it goes on where it is there.
    step
        Rows of later steps, written before an interruption, are dropped: they come again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in self._read() if float(row.get("step") or "inf") <= step]
        if self.columns:
            self._rewrite(rows)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Add a row."""
        row = {"step": step, **{name: f"{value:.6g}" for name, value in metrics.items()}}
        new = [name for name in row if name not in self.columns]
        if new:
            rows = self._read()
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, self.columns).writerow(row)

    def finalize(self, status: str) -> None:
        """Nothing to do: every row is in the file."""

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [row for row in reader if None not in row.values()]
            self.columns = list(reader.fieldnames or [])
        return rows

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_path(self.path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def make_loggers(kind: str, folder: Path, description: str, run_id: str, step: int) -> list[Any]:
    """Return the loggers of a run: always the CSV file, and the one of ``trainer.logger``.

    Parameters
    ----------
    kind
        ``csv`` | ``tensorboard`` | ``wandb``.
    folder
        Where they write.
    description
        Name of the run.
    run_id
        The same for a run that goes on, so that its curves do too.
    step
        Optimizer step the run goes on from.
    """
    check_logger(kind)
    loggers: list[Any] = [LiveCsv(folder / "metrics.csv", step)]
    if kind == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(save_dir=folder, name="tensorboard", version=run_id))
    elif kind == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(name=description, save_dir=folder, project="nuclass", id=run_id, resume="allow"))
    return loggers
