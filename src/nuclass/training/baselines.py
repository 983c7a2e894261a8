"""Baselines: published networks, frozen with a linear head or fine-tuned, on the cells that the models learn from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nuclass.core.errors import UserError, closest
from nuclass.core.log import get_logger
from nuclass.core.names import LINEAR, LOCAL, TEST, TRAIN, TUNED, VAL
from nuclass.core.progress import Progress
from nuclass.core.protocol import Protocol
from nuclass.data.features import FeatureKey, check_key, feature_shape, read_features, read_key
from nuclass.data.modules import Loading, LocalData
from nuclass.data.study import Study
from nuclass.data.training_cells import by_place
from nuclass.data.vocabulary import Vocabulary
from nuclass.models.backbones import build_backbone
from nuclass.models.heads import CONCAT
from nuclass.models.losses import effective_number_weights
from nuclass.training.branches import choose_device
from nuclass.training.checkpoint import load_checkpoint, restore_linear
from nuclass.training.config import Baseline, BaselineLinear, Baselines, Local, LocalNet, parse_models, to_plain
from nuclass.training.embedding import Embedding, embed_slide
from nuclass.training.fit import FitResult
from nuclass.training.linear_probe import Fit, Problem, Rows, head_outputs, moments
from nuclass.training.metrics import summarise
from nuclass.training.outputs import write_outputs
from nuclass.training.predict import known_organ, predict_models, write_prediction
from nuclass.training.predictor import Prediction, check_unseen, tell_unknown
from nuclass.training.train import common_payload, train_local

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)
Files = Mapping[str, Path]


def baseline_of(models: dict[str, Any], name: str) -> tuple[Baselines, Baseline]:
    """Return the section ``baselines`` of a model file, and in it the baseline of this name.

    Raises
    ------
    UserError
        There is none of this name.
    """
    section = parse_models(models).baselines
    if name not in section.networks:
        known = list(section.networks)
        raise UserError(
            "There is no baseline of this name",
            where="baselines",
            found=name,
            expected=", ".join(known) or "none: the model file has no baselines",
            fix=f"take a name of the list, or add the section baselines.{name}.{closest(name, known)}",
        )
    return section, section.networks[name]


def notes_of(name: str, baseline: Baseline) -> dict[str, Any]:
    """Return what a checkpoint says of the baseline it is of."""
    return {"baseline": {"name": name, "stand_in": baseline.stand_in}}


def embed_baseline(models: dict[str, Any], name: str, study: Study, outputs: Files, work: Path) -> int:
    """Cache the features of a frozen network for the labelled cells of slides; returns the number of cells.

    Parameters
    ----------
    models
        Content of a model file; ``baselines`` counts.
    name
        Of the baseline.
    study
        Its slides are those of ``outputs``.
    outputs
        Feature file of each slide, see :mod:`nuclass.data.features`.
    work
        Folder of the running state: a pass that was killed goes on within its slide.
    """
    from nuclass.data import load_cells

    section, baseline = baseline_of(models, name)
    # A stand-in has random weights: the same for all slides and jobs.
    torch.manual_seed(section.seed)
    backbone = build_backbone(baseline.backbone)
    chosen = section.features
    settings = Embedding(
        window="local",
        read_level=section.read_level,
        pooling="native",
        batch_size=chosen.batch_size,
        precision=chosen.precision,
        accelerator=chosen.accelerator,
        workers=chosen.workers,
        seed=section.seed,
    )
    cells = 0
    for row in study.slides:
        slide = str(row["slide"])
        frame = load_cells([row], study.results, (TRAIN, VAL, TEST))
        called = f"{name}, a stand-in" if baseline.stand_in else str(baseline.backbone["name"])
        embed_slide(backbone, frame, study, settings, outputs[slide], work / slide, name=called)
        cells += len(frame)
    return cells


def train_linear(
    models: dict[str, Any], name: str, study: Study, features: Files, out: Path, work: Path
) -> dict[str, Any]:
    """Fit a linear head on cached features and write the four files of a trained model to ``out``.

    The strength of the penalty is the one with the best macro-F1 on val, of equals the stronger; val chooses nothing
    else but the temperature, and no test cell is read.

    Parameters
    ----------
    models
        Content of a model file; ``baselines`` and, of the protocol, ``test_as_val`` count.
    study
        The training slides.
    features
        Feature file of each training slide, of :func:`embed_baseline`.
    out, work
        Output folder; folder for the features of the training cells while they are too large for the memory.

    Returns
    -------
    The content of ``metrics.json``.
    """
    section, baseline = baseline_of(models, name)
    protocol = parse_models(models).protocol
    chosen = section.linear
    key = common_key(features)
    data = LocalData(
        study,
        read_level=section.read_level,
        input_px=key.input_px,
        loading=Loading(seed=section.seed),
        test_as_val=protocol.test_as_val,
    )
    data.read_cells()
    device = choose_device(section.features.accelerator)
    used = CONCAT if baseline.organ == CONCAT else None
    train = gather_rows(data.train, data.known, features, used, chosen.memory_mb, work / "train")
    val = gather_rows(data.val, data.known, features, used, chosen.memory_mb, work / "val")
    started = time.perf_counter()
    fit, logits, history, best = choose_strength(train, val, data, chosen, device)
    seconds = time.perf_counter() - started
    payload = {
        **common_payload(study, data, replace(Protocol(), test_as_val=protocol.test_as_val), LOCAL),
        **notes_of(name, baseline),
        "model": LINEAR,
        "config": {**to_plain(chosen), "backbone": dict(baseline.backbone), "organ": baseline.organ},
        "features": key.to_dict(),
        "width": int(train.features.shape[1]),
        "weights": None,
        "input": {
            "size": study.windows["local"],
            "read_level": key.read_level,
            "input_px": key.input_px,
            "mean": list(key.mean),
            "std": list(key.std),
        },
    }
    result = FitResult(history, best, seconds)
    extra = {"n_train": len(train), "strength": best["strength"]}
    metrics = write_outputs(out, payload, fit.head, logits, val.label, result, extra)
    del train, val
    clear_rows(work)
    return metrics


def choose_strength(
    train: Rows, val: Rows, data: LocalData, settings: BaselineLinear, device: torch.device
) -> tuple[Fit, Tensor, list[dict[str, Any]], dict[str, Any]]:
    """Fit a head for each strength, from the strongest on, each from where the one before ended.

    Returns
    -------
    The best fit, its logits of the val cells (N, C), a row for each strength, and the best one's row.
    """
    classes = data.known.classes
    weights = effective_number_weights(torch.bincount(train.label, minlength=len(classes)), settings.beta)
    on_device = train if not _fits(train, device) else replace(train, features=train.features.to(device))
    n_organs = len(data.known.organs) if train.organ is not None else 0
    problem = Problem(on_device, weights, n_organs, *moments(on_device.features), device)
    coefficients = problem.start()
    organ = torch.zeros(len(val), dtype=torch.long) if val.organ is None else val.organ
    history: list[dict[str, Any]] = []
    best: tuple[Fit, Tensor, dict[str, Any]] | None = None
    with Progress(len(set(settings.strengths)), "linear head", "strengths") as progress:
        for strength in sorted(set(settings.strengths), reverse=True):
            started = time.perf_counter()
            fit = problem.solve(strength, coefficients, settings.max_iterations, settings.tolerance)
            if not fit.converged:
                _log.warning(
                    "strength %g: the largest gradient is %.1e after %d steps, more than the tolerance %g",
                    strength, fit.gradient, fit.iterations, settings.tolerance,
                )  # fmt: skip
            _, logits = head_outputs(fit.head, val.features, organ, device)
            found = summarise(logits, val.label, list(classes))
            row = {
                "strength": strength,
                "objective": fit.objective,
                "val_f1_macro": found["f1_macro"],
                "val_accuracy": found["accuracy"],
                "val_loss": found["log_loss"],
                "iterations": fit.iterations,
                "gradient": fit.gradient,
                "seconds": round(time.perf_counter() - started, 3),
            }
            history.append(row)
            if best is None or row["val_f1_macro"] > best[2]["val_f1_macro"]:
                best = fit, logits, row
            progress.advance(1)
    assert best is not None
    return best[0], best[1], history, best[2]


def _fits(rows: Rows, device: torch.device) -> bool:
    """Return whether features take at most half of the free memory of a GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return bool(rows.features.numel() * rows.features.element_size() <= free / 2)


def train_finetuned(models: dict[str, Any], name: str, study: Study, out: Path, work: Path) -> dict[str, Any]:
    """Fine-tune a network: layer norm and a linear layer on it, by :func:`nuclass.training.train.train_local`.

    Parameters are those of :func:`train_linear` and of :func:`train_local`; the result is that of the latter.
    """
    section, baseline = baseline_of(models, name)
    given = {"local": to_plain(tuned_section(section, baseline)), "protocol": models.get("protocol") or {}}
    return train_local(given, study, out, work, section.seed, notes_of(name, baseline))


def tuned_section(section: Baselines, baseline: Baseline) -> Local:
    """Return a baseline as the settings of a local model: no hidden layer, no FiLM."""
    tuned = section.finetuned
    return Local(
        backbone=baseline.backbone,
        read_level=section.read_level,
        model=LocalNet(
            organ=baseline.organ,
            organ_dim=baseline.organ_dim,
            hidden=0,
            dropout=tuned.dropout,
            organ_dropout=tuned.organ_dropout,
        ),
        loss=tuned.loss,
        optimizer=tuned.optimizer,
        trainer=tuned.trainer,
        augment=tuned.augment,
        seed=section.seed,
    )


def predict_baselines(
    models: dict[str, Any],
    study: Study,
    checkpoints: Files,
    features: Mapping[str, Files],
    outputs: Mapping[str, Files],
    work: Path,
) -> None:
    """Predict the labelled val and test cells of slides with baselines and write their tables.

    Parameters
    ----------
    models
        Content of a model file; ``predict`` and, of the protocol, ``first_organ`` count.
    study
        The slides.
    checkpoints
        ``best.ckpt`` by model: ``<name>_linear`` or ``<name>_finetuned``.
    features
        Name of the network -> slide -> its feature file, for linear heads.
    outputs
        Model -> slide -> Parquet file; embeddings and logits go beside it (``.h5``).
    work
        Folder of the running state of the fine-tuned networks.

    Raises
    ------
    UserError
        When a cell to predict is among the cells that a model was fitted to, or features are not those it knows.
    """
    for name, path in checkpoints.items():
        if name.endswith(f"_{TUNED}"):
            predict_models(models, study, {LOCAL: path}, {LOCAL: outputs[name]}, work / name)
        else:
            predict_linear(models, study, path, features[name.removesuffix(f"_{LINEAR}")], outputs[name])


def predict_linear(models: dict[str, Any], study: Study, checkpoint: Path, features: Files, outputs: Files) -> None:
    """Predict slides with a linear head on cached features; see :func:`predict_baselines`."""
    from nuclass.data import load_cells

    settings = parse_models(models)
    data = load_checkpoint(checkpoint, LINEAR)
    head, known = restore_linear(data), Vocabulary.from_dict(data)
    device = choose_device(settings.predict.accelerator)
    for row in study.slides:
        slide = str(row["slide"])
        frame = by_place(load_cells([{**row, "organ": known_organ(row)}], study.results, (VAL, TEST)))
        check_unseen(frame, data)
        tell_unknown(frame, known)
        check_linear(features[slide], data)
        organ = known.encode_organs(frame["organ"])
        if settings.protocol.first_organ and slide not in data["cells"]:
            organ = np.zeros_like(organ)
        found = torch.from_numpy(read_features(features[slide], frame["cell_id"].to_numpy()))
        embedded, logits = head_outputs(head, found, torch.from_numpy(organ), device)
        p = (logits / float(data["temperature"])).softmax(1)
        write_prediction(outputs[slide], frame, Prediction(p, logits, (embedded,)), list(known.classes))


def check_linear(path: Path, checkpoint: dict[str, Any]) -> None:
    """Raise when cached features are not of the kind that a linear head was fitted to; their precision may differ."""
    found, expected = read_key(path), FeatureKey.from_dict(checkpoint["features"], "the checkpoint of a linear head")
    if found.precision != expected.precision:
        _log.warning("%s: features in %s, the head was fitted to %s", path, found.precision, expected.precision)
        found = replace(found, precision=expected.precision)
    what = "Features do not fit the linear head"
    check_key(found, expected, what, path, "compute the features of this slide again with the baseline's network")


def common_key(features: Files) -> FeatureKey:
    """Return the key of feature files, which must be one."""
    paths = list(features.values())
    first = read_key(paths[0])
    for path in paths[1:]:
        what = "Features of two slides were made in different ways"
        check_key(read_key(path), first, what, path, "compute the features of all slides again")
    return first


def gather_rows(
    frame: pd.DataFrame, known: Any, features: Files, organ: str | None, memory_mb: float, work: Path
) -> Rows:
    """Return cells with their features, in memory up to ``memory_mb``, else in a file mapped from ``work``.

    Parameters
    ----------
    frame
        N cells with slide, cell_id, organ and class.
    known
        The vocabulary.
    features
        Feature file of each slide.
    organ
        None leaves the organ out.
    """
    from nuclass.patches.windows import slide_codes

    slides, codes = slide_codes(frame)
    shape = (len(frame), feature_shape(features[str(slides[0])])[1])
    need = 2e-6 * shape[0] * shape[1]
    if need <= memory_mb:
        array: Any = np.empty(shape, np.float16)
    else:
        _log.info(
            "Features of %d cells: %.0f MB, more than %.0f MB; they are kept in %s", shape[0], need, memory_mb, work
        )
        work.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(work / "rows.npy", "w+", np.float16, shape)
    ids = frame["cell_id"].to_numpy()
    for code, slide in enumerate(slides):
        rows = np.flatnonzero(codes == code)
        read_features(features[str(slide)], ids[rows], out=array, rows=rows)
    return Rows(
        torch.from_numpy(array),
        torch.from_numpy(known.encode_classes(frame["class"])),
        None if organ is None else torch.from_numpy(known.encode_organs(frame["organ"])),
    )


def clear_rows(work: Path) -> None:
    """Remove the features that :func:`gather_rows` kept."""
    for folder in (work / "train", work / "val"):
        (folder / "rows.npy").unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
