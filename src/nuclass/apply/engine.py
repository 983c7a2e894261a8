"""The pass over the cells of one's own slide: context features, then all models, in tile order, from where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError, closest
from nuclass.core.files import read_json, remove_state, sha256, write_json
from nuclass.core.jobs import code_of_job
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, GATE, GLOBAL, LOCAL, MODELS, TEST
from nuclass.core.own_cells import MISSPELT
from nuclass.data.vocabulary import UNKNOWN

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.data.study import Study
    from nuclass.training.predictor import Predictor

_log = get_logger(__name__)
INPUTS = "inputs.json"


@dataclass(frozen=True)
class Options:
    """How the models run; none of it is about the slide.

    Attributes
    ----------
    device
        ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
    batch
        Cells at once; None takes 256, and for neighbourhoods what training had.
    precision
        ``auto`` (bfloat16 on a GPU that has it; neighbourhoods as in training), ``32-true`` or ``bf16-mixed``.
    workers
        Processes that cut windows while the models compute; None takes none, and for neighbourhoods what training had.
    cache_mb
        Decoded tiles kept in memory, MB.
    threads
        For the slide's store; None takes all processors.
    """

    device: str = "auto"
    batch: int | None = None
    precision: str = "auto"
    workers: int | None = None
    cache_mb: int = 64
    threads: int | None = None

    @property
    def accelerator(self) -> str:
        """The device as the settings of models call it."""
        return "gpu" if self.device == "cuda" else self.device

    @property
    def sections(self) -> dict[str, Any]:
        """What of a model file prediction needs."""
        predict = {"accelerator": self.accelerator, "precision": self.precision, "workers": self.workers or 0}
        return {"predict": predict | ({"batch_size": self.batch} if self.batch else {})}


class Models:
    """A trained model with those it needs, as their checkpoints tell of them; weights are read when they are used.

    Parameters
    ----------
    checkpoint
        ``best.ckpt`` of a local model, a global model or a gate.
    given
        Of a gate: where its local and its global model lie, if not beside it.

    Raises
    ------
    UserError
        The file is no such checkpoint, or a model that a gate needs is not there.
    """

    def __init__(self, checkpoint: str | Path, given: Mapping[str, Path | None] | None = None) -> None:
        from nuclass.evaluation.holdout_run import find_checkpoints
        from nuclass.training.checkpoint import load_checkpoint, read_checkpoint

        path = Path(checkpoint)
        self.kind = str(read_checkpoint(path)["model"])
        if self.kind not in MODELS:
            raise UserError(
                "This model types no cells of a new slide",
                where=path,
                found=f"a checkpoint of the {self.kind} model",
                expected="best.ckpt of a local model, a global model or a gate",
                fix="give another checkpoint",
            )
        self.paths = find_checkpoints(path, self.kind, given)
        self.data = {name: load_checkpoint(path, name) for name, path in self.paths.items()}
        self.hashes = {name: sha256(path) for name, path in self.paths.items()}
        self._predictor: Predictor | None = None

    def load(self, options: Options) -> Predictor:
        """Return the networks, loaded once; raises where they do not belong together or the device is not there."""
        from nuclass.training.predictor import Predictor

        if self._predictor is None:
            _check_device(options.device)
            with _memory_told(None):
                self._predictor = Predictor(options.sections, self.paths)
        return self._predictor

    @property
    def own(self) -> dict[str, Any]:
        """The content of the checkpoint that was named."""
        return self.data[self.kind]

    @property
    def path(self) -> Path:
        """The checkpoint that was named."""
        return self.paths[self.kind]

    @property
    def classes(self) -> list[str]:
        """Classes, in the order of the probabilities."""
        return [str(name) for name in self.own["classes"]]

    @property
    def organs(self) -> list[str]:
        """Organs that the model knows, ``unknown`` among them where it has a place for others."""
        return [str(name) for name in self.own["organs"]]

    @property
    def mpp(self) -> float:
        """Micrometres per px of the windows."""
        return float(self.own["mpp"])

    @property
    def windows(self) -> dict[str, int]:
        """Sides of the windows, px; the global one as the global model has it, for a local one may serve several."""
        last = next(self.data[name] for name in (GATE, GLOBAL, LOCAL) if name in self.data)
        return {str(name): int(side) for name, side in last["windows"].items()}

    @property
    def trained_on(self) -> set[str]:
        """Names of the slides that any of the models was trained or chosen on."""
        return {str(slide) for data in self.data.values() for slide in data["cells"]}

    @property
    def stain(self) -> dict[str, dict[str, Any]]:
        """How the training slides are stained, slide by slide; nothing where no checkpoint tells."""
        return next((dict(data["stain"]) for data in self.data.values() if data.get("stain")), {})

    @property
    def trained_unknown(self) -> bool:
        """Whether cells of no organ were shown in training, so that ``unknown`` means something."""
        local = self.data.get(LOCAL)
        sizes = (local or {}).get("config", {}).get("model", {})
        return local is None or sizes.get("organ") == "none" or float(sizes.get("organ_dropout") or 0) > 0

    def organ(self, told: str | None) -> str:
        """Return the model's organ for what a user calls it; ``unknown`` for none, and for one it does not know.

        Raises
        ------
        UserError
            The name is close to one of the model's, or the model has no place for other organs.
        """
        from nuclass.core.patch_rows import organ_in

        known = [name for name in self.organs if name != UNKNOWN]
        wanted = (told or UNKNOWN).strip().casefold()
        for name in (wanted, organ_in(wanted)):
            if name in known:
                return name
        near = "" if wanted == UNKNOWN or organ_in(wanted) else closest(wanted, known, MISSPELT)
        if near or UNKNOWN not in self.organs:
            raise UserError(
                "The model does not know this organ" if told else "The model must be told the organ",
                where="--organ",
                found=(told or "nothing") + near,
                expected=" | ".join(self.organs),
                fix="correct the name" + (f", or give {UNKNOWN}" if UNKNOWN in self.organs else ""),
            )
        return UNKNOWN

    def check_backbone(self) -> None:
        """Raise when the network that neighbourhoods need is not there, before anything long runs."""
        from nuclass.evaluation.holdout_cells import context_folder

        if GLOBAL in self.data:
            context_folder(self.data[GLOBAL], self.paths[GLOBAL])


def cells_frame(slide: str, organ: str, rows: NDArray[np.int64], xy_px: NDArray[np.float64]) -> pd.DataFrame:
    """Return cells as :func:`nuclass.data.load_cells` gives them, without labels, in tile order.

    Parameters
    ----------
    rows
        (N,) numbers of the cells; their ids here, for those of users may be anything.
    xy_px
        (N, 2) slide-store px.
    """
    import pandas as pd

    from nuclass.data.training_cells import by_place

    def one(name: str) -> pd.Categorical:
        return pd.Categorical.from_codes(np.zeros(len(rows), np.int8), categories=[name])

    frame = pd.DataFrame(
        {
            "slide": one(slide),
            "organ": one(organ),
            CELL_ID: pd.array(rows.astype(str).astype(object), dtype="string[pyarrow]"),
            "row": rows.astype(np.int32),
            "x_px": xy_px[:, 0],
            "y_px": xy_px[:, 1],
            "class": one(""),
            "split": one(TEST),
        }
    )
    return by_place(frame)


def predict_cells(
    models: Models, frame: pd.DataFrame, study: Study, work: Path, options: Options
) -> dict[str, dict[str, NDArray[Any]]]:
    """Predict cells with all models of a checkpoint; a pass that was killed goes on to the same numbers.

    Parameters
    ----------
    frame
        See :func:`cells_frame`.
    study
        The one slide, with its store.
    work
        Folder of the running state. What lies there of other cells, another slide, other models or other code is
        removed.

    Returns
    -------
    By model: ``probabilities`` (N, C) float32, calibrated, and with a gate ``gate`` (N,), in the order of ``frame``.
    """
    from nuclass.evaluation.holdout_cells import with_context
    from nuclass.training.row_store import RowStore

    _clear_other(work, _key(models, frame, study, options))
    predictor = models.load(options)
    if GLOBAL in models.paths:
        usual = int(models.data[GLOBAL]["context"]["batch_size"])
        with _memory_told(min(usual, options.batch or usual)):
            study = with_context(
                study,
                work,
                models.paths,
                models.data,
                accelerator=options.accelerator,
                batch_size=options.batch,
                precision=None if options.precision == "auto" else options.precision,
                workers=options.workers,
                frame=frame,
            )
    predictor.check(frame, study, unseen=False)
    told = _memory_told(predictor.settings.batch_size)
    with told, RowStore(work / "rows", predictor.identity(frame, study), len(frame)) as store:
        if not store.done:
            for columns in predictor.stream(frame, study, store.rows):
                # Nobody asks for embeddings, and they would take most of the disk.
                store.append(**{name: values for name, values in columns.items() if "features" not in name})
    kept = store.tensors()
    nothing = kept[next(iter(kept))].new_empty((len(frame), 0))
    found = predictor.predictions({**kept, "features_a": nothing, "features_b": nothing})
    return {
        name: {
            "probabilities": one.probabilities.numpy(),
            **({"gate": one.gate.numpy().reshape(-1)} if one.gate is not None else {}),
        }
        for name, one in found.items()
    }


def _check_device(device: str) -> None:
    """Raise where a GPU is asked for and there is none, in the words of the command."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "No GPU was found",
            where=f"--device {device}",
            found="none that PyTorch sees on this machine",
            expected="a CUDA device",
            fix="start it on a node that has one (Slurm: --gres=gpu:1), or take --device auto; "
            "nuclass doctor --only gpu says what is missing",
        )


@contextmanager
def _memory_told(batch: int | None) -> Iterator[None]:
    """Tell an error of too little memory as the user's, with what to do; also of the processes that cut windows.

    Parameters
    ----------
    batch
        Cells at once; None where the networks themselves are loaded.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from nuclass.training.fit import out_of_memory

        text = " ".join(str(error).split())
        if "DataLoader worker" in text:
            raise UserError(
                "A process that cuts windows was ended from outside",
                where="--workers",
                found=text[:200],
                expected="memory for each of them",
                fix="give the job more memory (Slurm: --mem; a container: --shm-size too), or take fewer --workers: "
                "with 0 the command cuts them itself",
            ) from error
        if not out_of_memory(error) and "ALLOC_FAILED" not in text:
            raise
        smaller = f"try --batch {batch // 2}, " if batch is not None and batch > 1 else ""
        raise UserError(
            "The memory of the device is not enough",
            where="the networks themselves" if batch is None else f"{batch} cells at once",
            found=(str(error).strip().splitlines() or [type(error).__name__])[0],
            fix=f"{smaller}end other programs on the device (nvidia-smi shows those on a GPU), or take --device cpu",
        ) from error


def _key(models: Models, frame: pd.DataFrame, study: Study, options: Options) -> str:
    """Return a hash of what the running state is of."""
    from nuclass.training.inputs import data_hash

    parts = [data_hash(study, frame), models.hashes, options.accelerator, options.batch, options.precision]
    return new_sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _clear_other(work: Path, key: str) -> None:
    """Make ``work`` the folder of this key and this code; what is there of another one goes."""
    note, code = work / INPUTS, code_of_job()
    wanted = {"key": key, **({"code": code} if code else {})}
    found = _read_note(note) if note.is_file() else None
    if found == wanted:
        return
    if found is not None:
        what = "code" if found.get("key") == key else "cells, models or settings"
        _log.warning("The running state in %s is removed and the cells are typed anew: it is of other %s", work, what)
    remove_state(work)
    write_json(note, wanted)


def _read_note(path: Path) -> dict[str, Any]:
    """Return what a running state is of; nothing where that cannot be read."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}
