"""The two trained branches together: features and logits of the local and the global model for any cells."""

from __future__ import annotations

from collections.abc import Iterator
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
from nuclass.training.checkpoint import load_checkpoint, same_names
from nuclass.training.config import Predict
from nuclass.training.inputs import context_features
from nuclass.training.restore import restore_global, restore_local

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)


class BranchOutputs(NamedTuple):
    """What both branches give for B cells, float32 on the branches' device.

    Attributes
    ----------
    features_a, features_b
        What enters the heads, (B, DA) and (B, DB).
    logits_a, logits_b
        Uncalibrated, (B, C).
    local_b
        Features of the global model's own backbone, (B, D).
    """

    features_a: Tensor
    features_b: Tensor
    logits_a: Tensor
    logits_b: Tensor
    local_b: Tensor


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
        same_branches(self.local, self.global_, f"{local_checkpoint} and {global_checkpoint}")
        self.settings = settings
        self.device = choose_device(settings.accelerator)
        self.vocabulary = Vocabulary.from_dict(self.local)
        self.model_a = restore_local(self.local).to(self.device).requires_grad_(False)
        self.model_b = restore_global(self.global_).to(self.device).requires_grad_(False)
        # The models have the weights; a second reference would keep them in the processor's memory too.
        self.local.pop("state")
        self.global_.pop("state")

    @property
    def context_folder(self) -> Path | None:
        """Folder of the context backbone where the study trained its own, else None."""
        folder = self.global_["context_folder"]
        return Path(folder) if folder else None

    @property
    def temperatures(self) -> tuple[float, float]:
        """Temperatures of the local and the global model, fitted on val."""
        return float(self.local["temperature"]), float(self.global_["temperature"])

    def dataset(
        self, frame: pd.DataFrame, study: Study, *, views: bool, smaller: bool = False, memory_mb: float = 2048
    ) -> Any:
        """Return the local windows and context features of ``frame``; its classes may be any.

        ``smaller`` takes the context features of ``protocol.smaller_gate_context``.
        """
        source = self.local["input"]
        return local_windows(
            frame.assign(**{"class": self.vocabulary.only_known(frame["class"])}),
            study,
            self.vocabulary,
            read_level=source["read_level"],
            input_px=source["input_px"],
            memory_mb=memory_mb,
            extra={"context": self.context(frame, study, views=views, smaller=smaller)},
        )

    def context(self, frame: pd.DataFrame, study: Study, *, views: bool = False, smaller: bool = False) -> Tensor:
        """Return the cached context features (N, 1 + V, K), which must be those that the global model knows."""
        check_features(study, frame, self.global_, smaller=smaller)
        return context_features(frame, study, views=views, gate=smaller)

    def run(
        self,
        dataset: Any,
        *,
        view: int = 0,
        augment: Augment | None = None,
        seed: int = 0,
        start: int = 0,
        description: str = "cells",
    ) -> Iterator[tuple[dict[str, Tensor], BranchOutputs]]:
        """Run both models over a dataset of :meth:`dataset` in its order; yields each batch with its outputs.

        Parameters
        ----------
        view
            Which stored context features to use: 0 the plain ones, then those under augmentation.
        augment
            Augmentation of the local windows, seeded by ``seed`` and the batch; None takes them as they are.
        start
            Batches to leave out, for a pass that goes on.
        """
        from nuclass.data import make_loader

        size, on_gpu = self.settings.batch_size, self.device.type == "cuda"
        loader = make_loader(dataset, size, num_workers=self.settings.workers, pin_memory=on_gpu)
        loader.sampler.start_at(start)  # type: ignore[union-attr]
        with Progress(len(dataset), description, "cells", done=min(start * size, len(dataset))) as progress:
            for number, batch in enumerate(loader, start):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
                image, organ = (batch[key].to(self.device, non_blocking=True) for key in ("image", "organ"))
                pixels = augment_images(image, augment, generator) if augment else to_unit(image)
                yield batch, self.forward(pixels, organ, batch["context"][:, view].to(self.device))
                progress.advance(len(image))

    @torch.inference_mode()
    def forward(self, images: Tensor, organ: Tensor, context: Tensor) -> BranchOutputs:
        """Return what both models give for images (B, 3, S, S) in [0, 1], organs (B,) and context features (B, K)."""
        with autocast(self.device, self.settings.precision):
            a = self.model_a(images, organ)
            local_b = self.model_b.backbone(images)
            b = self.model_b.classify(local_b, context)
        return BranchOutputs(*(x.float() for x in (a.features, b.features, a.logits, b.logits, local_b)))

    @torch.inference_mode()
    def classify_b(self, local_b: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of the global model for its own backbone's features and other context features."""
        with autocast(self.device, self.settings.precision):
            b = self.model_b.classify(local_b, context.to(self.device))
        return b.features.float(), b.logits.float()


def same_branches(local: dict[str, Any], global_: dict[str, Any], where: str) -> None:
    """Raise when two checkpoints differ in classes, organs, the local window, their input or its scale.

    The local model never sees the global window, so that one local model serves global models of any.
    """
    fix = "train the global model again after the local one"
    for key in ("classes", "organs"):
        problem = f"The local and the global model differ in their {key}"
        same_names(global_[key], local[key], key, where=where, problem=problem, fix=fix)
    sides = {"local window": [checkpoint["windows"]["local"] for checkpoint in (local, global_)]}
    for key, (a, b) in {**{key: (local[key], global_[key]) for key in ("mpp", "input")}, **sides}.items():
        if a != b:
            problem = f"The local and the global model differ in their {key}"
            raise UserError(problem, where=where, found=b, expected=a, fix=fix)


def feature_attributes(study: Study, slides: list[str], *, smaller: bool = False) -> dict[str, Any]:
    """Return the key of the cached context features, as a checkpoint stores it; it must be one over ``slides``.

    ``smaller``: of those that the gate reads under ``protocol.smaller_gate_context``.
    """
    from nuclass.data.features import check_key, read_key

    paths = [study.gate_features(slide) if smaller else study.features(slide) for slide in slides]
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


def check_features(study: Study, frame: pd.DataFrame, checkpoint: dict[str, Any], *, smaller: bool = False) -> None:
    """Raise when the cached context features are not of the kind that the global model was trained on.

    Another precision changes features by about one part in a hundred; it is told in the log only, so that a model
    of a GPU works on a machine without one. ``smaller``: those of ``protocol.smaller_gate_context``, which differ in
    what the network sees, and have to be smaller there.
    """
    from nuclass.data.features import FeatureKey, check_key

    slides = [str(slide) for slide in dict.fromkeys(frame["slide"])]
    where = study.gate_features(slides[0]) if smaller else study.features(slides[0])
    found = FeatureKey.from_dict(feature_attributes(study, slides, smaller=smaller), where)
    expected = FeatureKey.from_dict(checkpoint["features"], "the checkpoint of the global model")
    if found.precision != expected.precision:
        _log.warning("%s: features in %s, the model saw %s", where, found.precision, expected.precision)
        found = replace(found, precision=expected.precision)
    if smaller:
        if found.input_px >= expected.input_px:
            raise UserError(
                "The gate's context features are no smaller than the global model's",
                where=where,
                found=f"{found.input_px} px",
                expected=f"fewer than {expected.input_px} px",
                fix="compute them again, or turn protocol.smaller_gate_context off",
            )
        found = replace(found, input_px=expected.input_px)
    check_key(
        found,
        expected,
        "Context features do not fit the global model",
        where,
        "compute the features of this slide again with the model's backbone",
    )
