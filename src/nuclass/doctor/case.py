"""What the doctor looks at: the study in its folder, the environment, and what all checks want to know of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nuclass
from nuclass.core.errors import UserError

if TYPE_CHECKING:
    from nuclass.core.config import Study

REPOSITORY = Path(nuclass.__file__).parents[2]
SLURM_PROFILE = "profiles/slurm/config.yaml"
# A mark tells make that all is installed, also where a package was removed or changed since.
INSTALL = "rm -f .venv/.complete; make setup"
CONDA_INSTALL = "snakemake --cores 1 --sdm conda --conda-create-envs-only"
_STUDY = threading.Lock()


@dataclass
class Case:
    """A study on a machine.

    Attributes
    ----------
    root
        The folder of the study.
    files
        Its settings, relative to ``root``, the last winning.
    settings
        Settings that are merged already, as Snakemake has them; without them ``files`` are read.
    offline
        Whether nothing may be asked of the network.
    hashes
        Whether weight files are read whole.
    environ
        The environment variables.
    environment
        The file of the conda environment that a job of the workflow runs in; None where all packages are expected.
    outer
        Versions of packages in the process that started such a job: Snakemake and its plugin.
    """

    root: Path = field(default_factory=Path)
    files: Sequence[Path] = (Path("config/config.yaml"),)
    settings: Mapping[str, Any] | None = None
    offline: bool = False
    hashes: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    environment: Path | None = None
    outer: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> str:
        """What a command needs to mean this study: `` --configfile config/paper.yaml``, or nothing."""
        own = [str(file) for file in self.files[1:]]
        return " ".join(["", "--configfile", *own]) if own else ""

    @property
    def study(self) -> Study:
        """The checked study.

        Raises
        ------
        UserError
            With all faults of settings and sheets.
        """
        with _STUDY:
            found = self._study
        if isinstance(found, UserError):
            raise found
        return found

    @cached_property
    def _study(self) -> Study | UserError:
        try:
            from nuclass.core.config import merge_files
            from nuclass.training.whole_study import load_whole_study

            settings = self.settings if self.settings is not None else merge_files(self.files, self.root)
            return load_whole_study(settings, self.root, self.files)
        except UserError as error:
            return error
        except ImportError as error:
            return UserError(f"a package cannot be loaded: {error}", fix=INSTALL)
        except Exception as error:  # noqa: BLE001
            # What the workflow itself would stumble over; the doctor goes on to its other checks.
            return UserError(f"reading the study failed: {type(error).__name__}: {error}", fix="nuclass check")

    @property
    def sound(self) -> bool:
        """Whether the study can be read."""
        with _STUDY:
            return not isinstance(self._study, UserError)

    @cached_property
    def profile(self) -> Mapping[str, Any]:
        """The Slurm profile of the study's folder; empty where there is none.

        Raises
        ------
        UserError
            If it is no YAML.
        """
        import yaml

        file = self.root / SLURM_PROFILE
        if not file.is_file():
            return {}
        try:
            read = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(
                "The Slurm profile is no YAML", where=file, found=" ".join(str(error).split()), fix="correct the line"
            ) from error
        return read if isinstance(read, Mapping) else {}

    def nearest(self, path: str | Path) -> Path:
        """Return the folder that is there on the way to a path of the study: itself, or the one it will be made in."""
        place = (self.root / path).absolute()
        while not place.is_dir():
            place = place.parent
        return place
