"""The two trained branches together: features and logits of the local and the global model for any cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import GLOBAL, LOCAL
from nuclass.core.progress import Progress
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.data.datasets import local_windows
from nuclass.data.study import Study
from nuclass.training.checkpoint import load_checkpoint, restore_global, restore_local
from nuclass.training.config import Predict
from nuclass.training.inputs import context_features

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)


class BranchOutputs(NamedTuple):
    """Features (N, DA), (N, DB) and uncalibrated logits (N, C) of both branches, float32 on the CPU."""

    features_a: Tensor
    features_b: Tensor
    logits_a: Tensor
    logits_b: Tensor

    def probabilities(self, temperature_a: float, temperature_b: float) -> tuple[Tensor, Tensor]:
        """Return calibrated probabilities of both branches."""
        return (self.logits_a / temperature_a).softmax(1), (self.logits_b / temperature_b).softmax(1)


def choose_device(accelerator: str = "auto") -> torch.device:
    """Return the device for inference: CUDA where there is one, unless the setting says ``cpu``."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("gpu", "cuda"):
        raise UserError(
            "No GPU was found", where="accelerator", found=accelerator, expected="a CUDA device", fix="use 'auto'"
        )
    return torch.device("cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for inference in :func:`computes_in`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in(device, precision) == "bfloat16")


def computes_in(device: torch.device, precision: str) -> str:
    """Return ``bfloat16`` for ``bf16...``, or for ``auto`` on a GPU that has it; else ``float32``."""
    wanted = precision.startswith("bf16")
    if precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if wanted else "float32"


def state_hash(module: torch.nn.Module) -> str:
    """Return a hash of a module's weights."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:16]


class Branches:
    """The local and the global model, frozen and in eval mode.

    Parameters
    ----------
    local_checkpoint, global_checkpoint
        Their ``best.ckpt``; they must know the same classes and organs.
    """

    def __init__(self, local_checkpoint: Path, global_checkpoint: Path, settings: Predict) -> None:
        from nuclass.data import Vocabulary

        self.local = load_checkpoint(local_checkpoint, LOCAL)
        self.global_ = load_checkpoint(global_checkpoint, GLOBAL)
        for key in ("classes", "organs", "input", "mpp"):
            if self.local[key] != self.global_[key]:
                raise UserError(
                    f"The local and the global model differ in their {key}",
                    where=f"{local_checkpoint} and {global_checkpoint}",
                    found=self.global_[key],
                    expected=self.local[key],
                    fix="train the global model again after the local one",
                )
        self.settings = settings
        self.device = choose_device(settings.accelerator)
        self.vocabulary = Vocabulary.from_dict(self.local)
        self.model_a = restore_local(self.local).to(self.device).requires_grad_(False)
        self.model_b = restore_global(self.global_).to(self.device).requires_grad_(False)

    @property
    def context_folder(self) -> Path | None:
        """Folder of the context backbone where the study trained its own, else None."""
        folder = self.global_["context_folder"]
        return Path(folder) if folder else None

    @property
    def temperatures(self) -> tuple[float, float]:
        """Temperatures of the local and the global model, fitted on val."""
        return float(self.local["temperature"]), float(self.global_["temperature"])

    def dataset(self, frame: pd.DataFrame, study: Study, *, views: bool, memory_mb: float = 2048) -> Any:
        """Return the local windows and context features of ``frame``; its classes may be any."""
        check_features(study, frame, self.global_)
        source = self.local["input"]
        return local_windows(
            frame.assign(**{"class": self.vocabulary.only_known(frame["class"])}),
            study,
            self.vocabulary,
            read_level=source["read_level"],
            input_px=source["input_px"],
            memory_mb=memory_mb,
            extra={"context": context_features(frame, study, views=views)},
        )

    @torch.inference_mode()
    def outputs(
        self, dataset: Any, *, view: int = 0, augment: Augment | None = None, seed: int = 0, description: str = "cells"
    ) -> BranchOutputs:
        """Run both models over a dataset of :meth:`dataset`.

        Parameters
        ----------
        view
            Which stored context features to use: 0 the plain ones, then those under augmentation.
        augment
            Augmentation of the local windows, seeded by ``seed``; None takes them as they are.
        """
        from nuclass.data import make_loader

        generator = torch.Generator().manual_seed(seed)
        parts: list[tuple[Tensor, ...]] = []
        with Progress(len(dataset), description, "cells") as progress:
            on_gpu = self.device.type == "cuda"
            for batch in make_loader(dataset, self.settings.batch_size, pin_memory=on_gpu):
                image, organ = (batch[key].to(self.device, non_blocking=True) for key in ("image", "organ"))
                pixels = augment_images(image, augment, generator) if augment else to_unit(image)
                context = batch["context"][:, view].to(self.device)
                with autocast(self.device, self.settings.precision):
                    a = self.model_a(pixels, organ)
                    b = self.model_b(pixels, context)
                parts.append(tuple(x.float().cpu() for x in (a.features, b.features, a.logits, b.logits)))
                progress.advance(len(image))
        return BranchOutputs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def feature_attributes(study: Study, slides: list[str]) -> dict[str, Any]:
    """Return the key of the cached context features, as a checkpoint stores it; it must be one over ``slides``."""
    from nuclass.data.features import check_key, read_key

    paths = [study.features(slide) for slide in slides]
    first = read_key(paths[0])
    for path in paths[1:]:
        check_key(
            read_key(path),
            first,
            "Context features of two slides were made in different ways",
            f"{paths[0]} and {path}",
            "compute the features of all slides again",
        )
    return first.to_dict()


def check_features(study: Study, frame: pd.DataFrame, checkpoint: dict[str, Any]) -> None:
    """Raise when the cached context features are not of the kind that the global model was trained on.

    Another precision changes features by about one part in a hundred; it is told in the log only, so that a model
    of a GPU works on a machine without one.
    """
    from nuclass.data.features import FeatureKey, check_key

    slides = [str(slide) for slide in dict.fromkeys(frame["slide"])]
    where = study.features(slides[0])
    found = FeatureKey.from_dict(feature_attributes(study, slides), where)
    expected = FeatureKey.from_dict(checkpoint["features"], "the checkpoint of the global model")
    if found.precision != expected.precision:
        _log.warning("%s: features in %s, the model saw %s", where, found.precision, expected.precision)
        found = replace(found, precision=expected.precision)
    check_key(
        found,
        expected,
        "Context features do not fit the global model",
        where,
        "compute the features of this slide again with the model's backbone",
    )
