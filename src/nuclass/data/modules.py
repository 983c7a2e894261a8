"""Lightning data modules of the local model, the global model and the gate: from a study to each process's batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from torch import Tensor

from nuclass.core.names import TEST, VAL
from nuclass.core.ranks import started_ranks
from nuclass.data.cells import give_back_memory, load_cells
from nuclass.data.datasets import InMemoryWindows, Rows, WindowDataset, local_windows
from nuclass.data.kept_rows import kept_rows
from nuclass.data.loaders import balanced_weights, make_loader
from nuclass.data.study import Study
from nuclass.data.training_cells import by_place, load_training_cells
from nuclass.data.vocabulary import Vocabulary

Windows = InMemoryWindows | WindowDataset
_SELECT_BATCH = 4096


@dataclass(frozen=True)
class Loading:
    """How batches are made.

    Attributes
    ----------
    batch_size
        Cells a batch and process.
    workers
        Processes that cut windows, where these are not in memory.
    memory_mb
        Windows of a split are kept in memory up to this, else cut when needed.
    balance
        Draw training cells with weight ``count(class) ** -balance``, with replacement; 0 shows each once an epoch.
    seed
        Of the order of training cells.
    """

    batch_size: int = 256
    workers: int = 0
    memory_mb: float = 2048
    balance: float = 0.0
    seed: int = 42


class GivenLoaders(pl.LightningDataModule):
    """Loaders made elsewhere."""

    def __init__(self, train: Iterable[Any], val: Iterable[Any]) -> None:
        super().__init__()
        self._train, self._val = train, val

    def train_dataloader(self) -> Any:
        """Return the training batches."""
        return self._train

    def val_dataloader(self) -> Any:
        """Return the validation batches."""
        return self._val


class CellData(pl.LightningDataModule):
    """What the three data modules share: loaders of ``train_set``, ``val_set`` and ``predict_set``.

    A process gets its part of the batches by the trainer's rank, see :class:`nuclass.data.BlockBatchSampler`;
    without a trainer it gets all of them. A trainer must leave the sampling to these loaders
    (``use_distributed_sampler=False``).
    """

    drop_last = True
    train_set: Any
    val_set: Any
    predict_set: Any

    def __init__(self, loading: Loading) -> None:
        super().__init__()
        self.loading = loading
        self._kept: dict[tuple[int, int, int, bool], Any] = {}

    def train_dataloader(self) -> Any:
        """Return shuffled batches of the training cells."""
        dataset: Windows | Rows = self._dataset("train_set")
        power = self.loading.balance
        weights = balanced_weights(dataset.label, power) if power and not isinstance(dataset, Rows) else None
        options: dict[str, Any] = {
            "shuffle": True,
            "seed": self.loading.seed,
            "drop_last": self.drop_last,
            "weights": weights,
        }
        return self._loader(dataset, self.loading.batch_size, **options)

    def val_dataloader(self) -> Any:
        """Return batches of the val cells in their order, each cell once over all processes."""
        return self._in_order(self._dataset("val_set"))

    def whole_val_dataloader(self) -> Any:
        """Return batches of all val cells in their order, in this process alone."""
        return self._in_order(self._dataset("val_set"), (0, 1))

    def predict_dataloader(self) -> Any:
        """Return batches of the cells to predict in their order, each cell once over all processes."""
        return self._in_order(self._dataset("predict_set"))

    def cell_names(self, rows: Sequence[int]) -> list[str]:
        """Return names of training cells, by row, for messages."""
        return [f"row {row}" for row in rows]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one process: its loaders and their workers."""
        return self.__dict__ | {"_kept": {}}

    def _in_order(self, dataset: Windows | Rows, place: tuple[int, int] | None = None) -> Any:
        """Return the loader of a dataset; the same again while nothing changed, so that its workers stay."""
        size = _SELECT_BATCH if isinstance(dataset, Rows) else self.loading.batch_size
        place = place or self._place()
        key = (id(dataset), *place, self._on_gpu())
        if key not in self._kept:
            self._kept[key] = self._loader(dataset, size, place)
        return self._kept[key]

    def _loader(
        self, dataset: Windows | Rows, batch_size: int, place: tuple[int, int] | None = None, **options: Any
    ) -> Any:
        rank, world_size = place or self._place()
        return make_loader(
            dataset,
            batch_size,
            num_workers=self.loading.workers,
            pin_memory=self._on_gpu(),
            rank=rank,
            world_size=world_size,
            **options,
        )

    def _dataset(self, name: str) -> Any:
        if not hasattr(self, name):
            raise ValueError(f"There is no {name} yet: call setup first")
        return getattr(self, name)

    def _place(self) -> tuple[int, int]:
        """Return this process's number and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


class LocalData(CellData):
    """The local windows, organs and classes of a study's cells.

    Parameters
    ----------
    study
        Its slides are trained on, or predicted.
    read_level, input_px
        Pyramid level the windows are read from, and side they are brought to by the process that reads them.
    loading
        Batches, workers, memory.
    vocabulary
        Classes and organs by which cells are predicted; training takes those of its cells.
    test_as_val
        See :func:`nuclass.data.training_cells.load_training_cells`.

    :meth:`read_cells` makes ``train`` and ``val`` (tables of cells) and ``known``, their vocabulary; :meth:`setup`
    with ``fit`` or ``validate`` does so too and makes ``train_set`` and ``val_set``; with ``predict`` it makes
    ``predicted``, the labelled val and test cells, and ``predict_set``. All this is done once, however often it
    is asked for.
    """

    train_set: Windows
    val_set: Windows
    train: pd.DataFrame
    val: pd.DataFrame
    predicted: pd.DataFrame
    known: Vocabulary

    def __init__(
        self,
        study: Study,
        *,
        read_level: int,
        input_px: int,
        loading: Loading,
        vocabulary: Vocabulary | None = None,
        test_as_val: bool = False,
    ) -> None:
        super().__init__(loading)
        self.study, self.read_level, self.input_px = study, read_level, input_px
        self.test_as_val = test_as_val
        if vocabulary is not None:
            self.known = vocabulary

    def read_cells(self) -> None:
        """Load the train and val cells and take their vocabulary."""
        if not hasattr(self, "train"):
            self.train, self.val, self.known = load_training_cells(self.study, self.test_as_val)
            give_back_memory()

    def cell_names(self, rows: Sequence[int]) -> list[str]:
        """Return training cells as ``slide/cell_id``, by row."""
        part = self.train.iloc[list(rows)]
        return [f"{slide}/{cell}" for slide, cell in zip(part["slide"], part["cell_id"], strict=True)]

    def setup(self, stage: str | None = None) -> None:
        """Load the cells of a stage and read their windows, or lay down where these lie."""
        if stage == "predict":
            if not hasattr(self, "predict_set"):
                self._setup_predict()
        elif not hasattr(self, "train_set"):
            self.read_cells()
            train_set = self._windows(self.train, "train windows")
            val_set = self._windows(self.val, "val windows")
            self._complete(self.train, train_set, training=True)
            self._complete(self.val, val_set, training=False)
            self.train_set, self.val_set = train_set, val_set

    def _setup_predict(self) -> None:
        if not hasattr(self, "known"):
            raise ValueError("Prediction needs the vocabulary of a trained model")
        frame = by_place(load_cells(self.study.slides, self.study.results, (VAL, TEST)))
        self.predicted = frame
        known = frame.assign(**{"class": self.known.only_known(frame["class"])})
        self.predict_set = self._windows(known, "windows")
        self._complete(frame, self.predict_set, training=False)

    def _windows(self, frame: pd.DataFrame, description: str) -> Windows:
        return local_windows(
            frame,
            self.study,
            self.known,
            read_level=self.read_level,
            input_px=self.input_px,
            memory_mb=self.loading.memory_mb,
            description=description,
        )

    def _complete(self, frame: pd.DataFrame, dataset: Windows, *, training: bool) -> None:
        """Add what else a model needs of each cell."""


class GlobalData(LocalData):
    """What :class:`LocalData` gives, and the cached context features; in training also the teacher's logits.

    Parameters
    ----------
    context
        ``context(frame, views)`` returns the cached features of cells, (N, 1 + V, K), V = 0 without ``views``;
        training cells come with views, others without.
    teacher
        ``teacher(dataset)`` returns the frozen local model's logits (N, C) of the training windows.
    kept
        Folder in which the teacher's logits are kept part by part, so that an interrupted run goes on with them;
        several processes that torchrun or srun started compute a share each.
    kept_key
        What the logits depend on beside the cells, such as a hash of the teacher's weights.

    Items have ``context``, those of training also ``teacher``. Other parameters are those of :class:`LocalData`.
    """

    def __init__(
        self,
        study: Study,
        *,
        context: Callable[[pd.DataFrame, bool], Tensor],
        teacher: Callable[[Windows], Tensor] | None = None,
        kept: Path | None = None,
        kept_key: str = "",
        **options: Any,
    ) -> None:
        super().__init__(study, **options)
        self.context, self.teacher = context, teacher
        self.kept, self.kept_key = kept, kept_key

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was needed to set up alone: a process that gets these data gets the results."""
        state = super().__getstate__()
        return state | {"context": None, "teacher": None} if "train_set" in state else state

    def _complete(self, frame: pd.DataFrame, dataset: Windows, *, training: bool) -> None:
        dataset.add("context", self.context(frame, training))
        if training and self.teacher is not None:
            dataset.add("teacher", self._teacher_logits(frame, dataset, self.teacher))

    def _teacher_logits(self, frame: pd.DataFrame, dataset: Windows, teacher: Callable[[Windows], Tensor]) -> Tensor:
        if self.kept is None:
            return teacher(dataset)
        started = started_ranks()
        if started.world_size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(started.local_rank % torch.cuda.device_count())
        cells = pd.util.hash_pandas_object(frame[["slide", "cell_id", "x_px", "y_px"]], index=False)
        key = f"{self.kept_key} {hashlib.sha256(cells.to_numpy().tobytes()).hexdigest()}"
        return kept_rows(self.kept, key, len(dataset), lambda start, stop: teacher(dataset.part(start, stop)))


class GateData(CellData):
    """Cached outputs of both branches, by name, for the cells that fit the gate and those that select its state.

    Parameters
    ----------
    fitting, selecting
        Tensors of equal first axis: features_a, features_b, p_a, p_b, label.
    batch_size, seed
        Cells a training batch; seed of their order.
    """

    drop_last = False

    def __init__(self, fitting: dict[str, Tensor], selecting: dict[str, Tensor], *, batch_size: int, seed: int) -> None:
        super().__init__(Loading(batch_size=batch_size, seed=seed))
        self.train_set, self.val_set = Rows(fitting), Rows(selecting)
