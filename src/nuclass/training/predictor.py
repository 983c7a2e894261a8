"""Trained models together: outputs of the local, the global and the gate model, whichever are given, for any cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuclass.core.ahead import ahead
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import GATE, GLOBAL, LOCAL, MODELS, TRAIN
from nuclass.core.progress import Progress
from nuclass.data.augment import to_unit
from nuclass.data.features import read_key, to_half
from nuclass.data.vocabulary import UNKNOWN, Vocabulary
from nuclass.models.gate import FusedModel, mix
from nuclass.models.losses import EPSILON
from nuclass.training.branches import (
    autocast,
    check_features,
    choose_device,
    computes_in,
    feature_attributes,
    same_branches,
    state_hash,
)
from nuclass.training.checkpoint import load_checkpoint, same_names
from nuclass.training.compiling import compiles, failures_told, filled, is_compiled
from nuclass.training.config import parse_models
from nuclass.training.inputs import context_features, data_hash
from nuclass.training.restore import restore_gate, restore_global, restore_local
from nuclass.training.state import Identity, fingerprint

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.data.datasets import Batch
    from nuclass.data.study import Study
    from nuclass.patches.windows import WindowReader

_log = get_logger(__name__)
PART_CELLS = 16_384
"""Cells whose context features are in memory at a time."""

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Prediction:
    """One model's output for N cells.

    Attributes
    ----------
    probabilities, logits
        (N, C) float32, calibrated and not.
    embeddings
        Parts of the embedding, side by side, (N, D) float16 each.
    gate
        The weight of the global model, (N,), where there is one.
    """

    probabilities: Tensor
    logits: Tensor
    embeddings: tuple[Tensor, ...]
    gate: Tensor | None = None


class Predictor:
    """Trained models that share their classes, in eval mode, each loaded once.

    Parameters
    ----------
    models
        Content of a model file; its section ``predict`` and of its ``protocol`` the switch ``first_organ`` matter.
    checkpoints
        ``best.ckpt`` by model: ``local``, ``global``, both, or with ``gate`` all three; the gate must have been
        trained on these two.

    Raises
    ------
    UserError
        When no model is given, a gate comes without its two models, or the checkpoints do not belong together.
    """

    def __init__(self, models: dict[str, Any], checkpoints: Mapping[str, Path]) -> None:
        parsed = parse_models(models)
        self.settings, self.first_organ = parsed.predict, parsed.protocol.first_organ
        self.names = _names(checkpoints)
        self.device = choose_device(self.settings.accelerator)
        self.checkpoints = {name: load_checkpoint(checkpoints[name], name) for name in self.names}
        self.local = restore_local(self.checkpoints[LOCAL]) if LOCAL in self.names else None
        self.wide = restore_global(self.checkpoints[GLOBAL]) if GLOBAL in self.names else None
        self.gate = restore_gate(self.checkpoints[GATE]) if GATE in self.names else None
        given = {LOCAL: self.local, GLOBAL: self.wide, GATE: self.gate}
        networks = {name: network for name, network in given.items() if network is not None}
        self.hashes = {name: state_hash(network) for name, network in networks.items()}
        if self.local is not None and self.wide is not None:
            where = f"{checkpoints[LOCAL]} and {checkpoints[GLOBAL]}"
            same_branches(self.checkpoints[LOCAL], self.checkpoints[GLOBAL], where)
        if self.gate is not None:
            self._check_gate(checkpoints)
        for name, network in networks.items():
            network.to(self.device).requires_grad_(False)
            # The model has the weights; a second reference would keep them in the processor's memory too.
            self.checkpoints[name].pop("state")
        first = self.checkpoints[self.names[0]]
        self.vocabulary = Vocabulary.from_dict(first)
        self.input: dict[str, Any] = first["input"]
        self.compiled = False
        self.smaller = bool(self.checkpoints.get(GATE, {}).get("protocol", {}).get("smaller_gate_context"))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the probabilities."""
        return list(self.vocabulary.classes)

    @property
    def temperatures(self) -> dict[str, float]:
        """Temperature of each model's logits, fitted on val."""
        return {name: float(checkpoint["temperature"]) for name, checkpoint in self.checkpoints.items()}

    @property
    def gate_temperatures(self) -> tuple[float, float]:
        """Temperatures of the local and the global logits that the gate weighs."""
        own = self.checkpoints[GATE].get("temperatures") or self.temperatures
        return float(own[LOCAL]), float(own[GLOBAL])

    def check(self, frame: pd.DataFrame, study: Study, *, unseen: bool = True) -> None:
        """Raise when the models cannot predict these cells: seen in training, or features of another kind.

        Classes and organs that the models do not know are told in the log.
        Without ``unseen`` cells may be those of the training; their predictions must not be judged by.
        """
        if unseen:
            for name in self.names:
                check_unseen(frame, self.checkpoints[name])
        tell_unknown(frame, self.vocabulary)
        if self.first_organ and self.local is not None and self._taken_as_first(frame).any():
            _log.warning(
                "%d cells are predicted as of the organ '%s', whatever theirs is (protocol: first_organ)",
                int(self._taken_as_first(frame).sum()), self.vocabulary.organs[0],
            )  # fmt: skip
        if self.wide is None:
            return
        check_features(study, frame, self.checkpoints[GLOBAL])
        if self.smaller:
            check_features(study, frame, self.checkpoints[GLOBAL], smaller=True)
            self._check_smaller(frame, study)

    def identity(self, frame: pd.DataFrame, study: Study) -> Identity:
        """Return a hash of all that the outputs for these cells depend on."""
        slides = list(dict.fromkeys(map(str, frame["slide"])))
        files = [study.features(slide) for slide in slides] if self.wide is not None else []
        files += [study.gate_features(slide) for slide in slides] if self.smaller else []
        return fingerprint(
            models=self.hashes,
            temperatures=self.temperatures,
            gate_temperatures=self.gate_temperatures if self.gate is not None else None,
            cells=data_hash(study, frame),
            features=[
                [str(file), read_key(file).digest, file.stat().st_size, file.stat().st_mtime_ns] for file in files
            ],
            input=self.input,
            first_organ=self.first_organ,
            # The order of sums depends on the batch and the device.
            batch=self.settings.batch_size,
            device=[self.device.type, computes_in(self.device, self.settings.precision)],
            **({"compiled": True} if self.compile(len(frame)) else {}),
        )

    def predict(self, frame: pd.DataFrame, study: Study) -> dict[str, Prediction]:
        """Return the predictions of all given models for the cells of ``frame``, in memory.

        Cells may have any class; a slide's organ that the models do not know counts as unknown. Both are told.
        """
        self.check(frame, study)
        batches = list(self.stream(frame, study))
        kept = {name: torch.from_numpy(np.concatenate([batch[name] for batch in batches])) for name in batches[0]}
        return self.predictions(kept)

    def compile(self, cells: int) -> bool:
        """Compile the backbones, once, where the settings say so for a pass over so many cells; say if they are."""
        backbones = [model.backbone for model in (self.local, self.wide) if model is not None]
        wanted = any(compiles(self.settings.compile, self.device, net, cells) for net in backbones)
        for net in backbones:
            if wanted and not is_compiled(net):
                net.compile()
        return any(map(is_compiled, backbones))

    def predictions(self, kept: Mapping[str, Tensor]) -> dict[str, Prediction]:
        """Return the predictions that the columns of :meth:`stream`, all batches joined, make."""
        found = {}
        for name, letter in ((LOCAL, "a"), (GLOBAL, "b")):
            if name in self.names:
                z = kept[f"z_{letter}"]
                p = (z / self.temperatures[name]).softmax(1)
                found[name] = Prediction(p, z, (kept[f"features_{letter}"],))
        if GATE in self.names:
            halves = (kept["features_a"], kept["gate_features"] if "gate_features" in kept else kept["features_b"])
            p = (kept["log_p"] / self.temperatures[GATE]).softmax(1)
            found[GATE] = Prediction(p, kept["log_p"], halves, kept["gate"])
        return found

    def stream(self, frame: pd.DataFrame, study: Study, start: int = 0) -> Iterator[Columns]:
        """Give what is kept of each batch, in the order of ``frame``; windows are cut when they are needed.

        Parameters
        ----------
        frame
            Cells, as :func:`nuclass.data.load_cells` gives them; in tile order each tile is decoded about once.
        start
            Cells to leave out, whole batches, for a pass that goes on.

        Yields
        ------
        Arrays by name: ``features_a`` (B, DA), ``features_b`` (B, DB) float16, ``z_a``, ``z_b`` (B, C) float32; with a
        gate ``log_p`` (B, C), ``gate`` (B,), and ``gate_features`` where its features are others.
        """
        size = self.settings.batch_size
        if start % size:
            raise ValueError(f"A pass goes on at a whole batch of {size}, not at cell {start}")
        self.compiled = self.compile(len(frame))
        with Progress(len(frame), "predicting", "cells", done=start) as progress:
            # Worker processes read ahead by themselves.
            batches = self._batches(frame, study, start)
            for ids, batch in batches if self.settings.workers else ahead(batches):
                with failures_told("prediction"):
                    rows = self._rows(batch)
                yield self._columns(rows, ids, study)
                progress.advance(len(ids))

    def _batches(self, frame: pd.DataFrame, study: Study, start: int) -> Iterator[tuple[NDArray[Any], Batch]]:
        """Give the ids and what the models see of each batch, part by part."""
        from nuclass.data import make_loader

        size = self.settings.batch_size
        part, on_gpu = size * max(1, PART_CELLS // size), self.device.type == "cuda"
        with study.reader() as reader:
            for first in range(start - start % part, len(frame), part):
                rows = frame.iloc[max(first, start) : first + part]
                dataset = self._dataset(rows, study, reader)
                for batch in make_loader(dataset, size, num_workers=self.settings.workers, pin_memory=on_gpu):
                    yield rows["cell_id"].to_numpy()[batch["index"].numpy()], batch

    def _dataset(self, rows: pd.DataFrame, study: Study, reader: WindowReader) -> Any:
        from nuclass.data import WindowDataset

        organ = self.vocabulary.encode_organs(rows["organ"])
        if self.first_organ:
            organ = np.where(self._taken_as_first(rows), 0, organ)
        dataset = WindowDataset(
            reader,
            rows,
            study.windows["local"],
            self.input["read_level"],
            self.input["input_px"],
            organ,
            self.vocabulary.encode_classes(self.vocabulary.only_known(rows["class"])),
        )
        if self.wide is not None:
            dataset.add("context", context_features(rows, study, views=False)[:, 0])
        if self.smaller:
            dataset.add("gate_context", context_features(rows, study, views=False, gate=True)[:, 0])
        return dataset

    @torch.inference_mode()
    def _rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is kept of a batch, float32 on the device."""
        rows: dict[str, Tensor] = {}
        cells = len(batch["image"])
        if self.compiled and cells < self.settings.batch_size:
            taken = filled(cells, self.settings.batch_size)
            batch = {name: values[taken] for name, values in batch.items()}
        image, organ = (batch[key].to(self.device, non_blocking=True) for key in ("image", "organ"))
        pixels = to_unit(image)
        if self.local is not None:
            with autocast(self.device, self.settings.precision):
                a = self.local(pixels, organ)
            rows |= {"features_a": a.features.float(), "z_a": a.logits.float()}
        if self.wide is not None:
            with autocast(self.device, self.settings.precision):
                local_b = self.wide.backbone(pixels)
            context = batch["context"].to(self.device)
            rows |= dict(zip(("features_b", "z_b"), self._classify_b(local_b, context), strict=True))
            if self.gate is not None:
                smaller = batch["gate_context"].to(self.device) if self.smaller else None
                rows |= self._mixed(rows, local_b.float(), context, smaller)
        return {name: values[:cells] for name, values in rows.items()}

    def _classify_b(self, local_b: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of the global model for its own backbone's features and context features."""
        assert self.wide is not None
        with autocast(self.device, self.settings.precision):
            b = self.wide.classify(local_b, context)
        return b.features.float(), b.logits.float()

    def _mixed(
        self, rows: dict[str, Tensor], local_b: Tensor, context: Tensor, smaller: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the mixture as the gate weighs it, and the gate."""
        features_b, z_a, z_b = rows["features_b"], rows["z_a"], rows["z_b"]
        if smaller is not None:
            context = smaller
            features_b, z_b = self._classify_b(local_b, context)
        if isinstance(self.gate, FusedModel):
            features_b, z_a, z_b = self.gate.branches(rows["features_a"], local_b, context.float())
        own = {} if features_b is rows["features_b"] else {"gate_features": features_b}
        temperature_a, temperature_b = self.gate_temperatures
        p_a, p_b = (z_a / temperature_a).softmax(1), (z_b / temperature_b).softmax(1)
        assert self.gate is not None
        g = torch.sigmoid(self.gate(rows["features_a"], features_b, p_a, p_b))
        return {**own, "log_p": (mix(p_a, p_b, g) + EPSILON).log(), "gate": g}

    def _columns(self, rows: dict[str, Tensor], ids: NDArray[Any], study: Study) -> Columns:
        """Return a batch's outputs as they are kept: features in half precision."""
        arrays = {name: values.float().cpu().numpy() for name, values in rows.items()}
        return {
            name: to_half(values, ids, study.results) if "features" in name else values
            for name, values in arrays.items()
        }

    def _taken_as_first(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Mark the cells that ``first_organ`` is about: those of slides that no model was trained on."""
        trained = {slide for checkpoint in self.checkpoints.values() for slide in checkpoint["cells"]}
        return ~frame["slide"].astype(str).isin(trained).to_numpy()

    def _check_gate(self, checkpoints: Mapping[str, Path]) -> None:
        gate = self.checkpoints[GATE]
        for key in ("classes", "organs"):
            same_names(
                gate[key],
                self.checkpoints[LOCAL][key],
                key,
                where=checkpoints[GATE],
                problem=f"The gate was trained for other {key} than the local and the global model",
                fix="train the gate again",
            )
        for name in (LOCAL, GLOBAL):
            if gate["parents"][name] != self.hashes[name]:
                raise UserError(
                    f"The gate was trained on another {name} model",
                    where=checkpoints[GATE],
                    found=f"weights {gate['parents'][name]}",
                    expected=f"weights {self.hashes[name]} of {checkpoints[name]}",
                    fix="train the gate again",
                )

    def _check_smaller(self, frame: pd.DataFrame, study: Study) -> None:
        slides = [str(slide) for slide in frame["slide"].unique()]
        found = feature_attributes(study, slides, smaller=True)["input_px"]
        expected = self.checkpoints[GATE]["features"]["input_px"]
        if found != expected:
            raise UserError(
                "The gate's context features are of another size than it was trained on",
                where=study.gate_features(slides[0]),
                found=f"{found} px",
                expected=f"{expected} px",
                fix="compute them again",
            )


def _names(checkpoints: Mapping[str, Path]) -> list[str]:
    """Return the models that are given, in their order."""
    names = [name for name in MODELS if name in checkpoints]
    foreign = sorted(set(checkpoints) - set(MODELS))
    lacking = [name for name in (LOCAL, GLOBAL) if name not in names] if GATE in names else []
    if not names or foreign or lacking:
        raise UserError(
            f"A gate predicts together with the {' and the '.join(lacking)} model that it was trained on"
            if lacking
            else "There is no model to predict with",
            found=f"checkpoints of {', '.join(checkpoints) or 'no model'}",
            expected="local, global, both, or with gate all three",
            fix="name the checkpoints",
        )
    return names


def tell_unknown(frame: pd.DataFrame, vocabulary: Vocabulary) -> None:
    """Log the organs and the classes of cells that the models do not know."""
    known = [name for name in vocabulary.organs if name != UNKNOWN]
    others = frame["organ"].astype(object)[~frame["organ"].isin(known)].value_counts()
    if UNKNOWN in vocabulary.organs:
        if n := int(others.pop(UNKNOWN)) if UNKNOWN in others else 0:
            _log.warning("%d cells are of no stated organ; the models take it as unknown", n)
        for organ, n in others.items():
            _log.warning(
                "%d cells are of the organ '%s', which the models did not see (%s); they take it as unknown",
                n, organ, ", ".join(known),
            )  # fmt: skip
    labels = frame["class"].astype(object)
    other = labels[~labels.isin([*vocabulary.classes, ""])]
    if len(other):
        counts = ", ".join(f"{name} {n}" for name, n in other.value_counts().items())
        _log.warning(
            "%d of %d cells have a class that the models do not have, and get one of theirs: %s",
            len(other), len(frame), counts,
        )  # fmt: skip


def check_unseen(frame: pd.DataFrame, checkpoint: dict[str, Any]) -> None:
    """Raise when any cell of ``frame`` is among the checkpoint's training cells."""
    for slide, part in frame.groupby("slide", observed=True):
        fitted = checkpoint["cells"].get(str(slide), {}).get(TRAIN, ())
        both = part["cell_id"][part["cell_id"].isin(fitted)].tolist()
        if both:
            raise UserError(
                "Cells to predict were used in training",
                where=f"slide {slide}",
                found=f"{len(both)} cells, the first: {min(both)}",
                expected="none",
                fix="the splits changed after training: train the models again",
            )
