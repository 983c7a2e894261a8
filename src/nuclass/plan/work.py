"""How much a job does, from what Snakemake tells of it, and how long that takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nuclass.core.needs import INVERTED, used_cells
from nuclass.core.sizes import NOTHING, Estimate, SlideSize, total
from nuclass.plan.jobs import Job
from nuclass.plan.networks import gflop
from nuclass.plan.rates import Rate, origin

BACKWARD = 3.0
"""Operations of a training step, of one forward pass; a third more where activations are computed again."""
LEAST_EPOCHS = 2.0
CONTROL_PASSES = 18.0
"""Passes of a cell for the controls of its map: 5 networks drawn anew to three degrees, three of the trained one."""


@dataclass(frozen=True)
class Work:
    """What a job does.

    Attributes
    ----------
    kcells
        Thousands of cells that it reads; of trainings, those of all epochs together.
    mpx
        Million px of its slides' H&E.
    mb
        10^6 bytes that it downloads.
    gflop
        10^9 operations of its networks.
    epochs
        Epochs of a training; nothing for other jobs.
    held
        Thousands of cells that a training holds, each once; nothing for other jobs, which read each cell once.
    """

    kcells: Estimate = NOTHING
    mpx: Estimate = NOTHING
    mb: Estimate = NOTHING
    gflop: Estimate = NOTHING
    epochs: Estimate | None = None
    held: Estimate | None = None

    @property
    def held_at_once(self) -> float:
        """Thousands of cells that memory grows with, expected: each once, however often it is read."""
        return (self.kcells if self.held is None else self.held).expected


def work_of(job: Job, sizes: Mapping[str, SlideSize], downloads: Mapping[str, Estimate]) -> Work:
    """Return what a job does.

    Parameters
    ----------
    job
        The job.
    sizes
        How large each slide is.
    downloads
        Slide -> bytes that are still to come.
    """
    slides = [sizes[name] for name in job.slides(list(sizes))]
    kind = origin(job.rule)
    shrunk = INVERTED if job.rule == "build_slide_variant" else 1.0
    mpx = total(size.mpx for size in slides) * shrunk
    plain = Work(total(size.cells for size in slides) * 1e-3, mpx)
    if kind == "fetch_bundle":
        here = [downloads[size.slide] for size in slides if size.slide in downloads]
        return Work(plain.kcells, mpx, total(here) * 1e-6)
    known = _NETWORKS.get(kind)
    return known(job, slides) if known is not None else plain


def seconds(rate: Rate, work: Work, threads: int, gpus: int) -> Estimate:
    """Return how long a job takes: what every job takes, and its work by the cores or GPUs that share it."""
    speed = 1.0 / rate.gflops if rate.gflops else 0.0
    parts = work.kcells * rate.kcell_s + work.mpx * rate.mpx_s + work.mb * rate.mb_s
    shared = max(gpus, 1) if rate.device == "gpu" else max(min(threads, rate.cores), 1)
    grown = (parts + work.gflop * speed) * Estimate(rate.low, 1.0, rate.high) * (1 / shared)
    return Estimate.exactly(rate.fixed_s) + grown


def megabytes(rate: Rate, work: Work, job: Job) -> Estimate:
    """Return the memory of a job, 10^6 bytes; neither epochs nor validations add up."""
    expected = rate.mb + rate.mb_kcell * work.held_at_once
    return Estimate(0.8 * expected, expected, max(1.5 * expected, float(job.mem_mb or 0)))


def epochs(trainer: Mapping[str, Any]) -> Estimate:
    """Return how many epochs a training takes.

    At most ``max_epochs``. Where early stopping can end it sooner, at least two or its patience and one; expected is
    the geometric mean of the two, for nothing tells it beforehand.
    """
    most = float(trainer["max_epochs"])
    least = max(LEAST_EPOCHS, 1.0 + float(trainer.get("patience", most)) * float(trainer.get("validate_every", 1.0)))
    return Estimate.exactly(most) if least >= most else Estimate(least, math.sqrt(least * most), most)


def _cells(job: Job, slides: Sequence[SlideSize]) -> tuple[Estimate, Estimate, Estimate]:
    """Return cells in use, those to train on, and those of validation; of cohorts none are of the latter two."""
    used = total(used_cells(size) for size in slides)
    trained = total(used_cells(size) for size in slides if size.role == "train")
    train, val = job.params["shares"]
    return used, trained * train, trained * val


def _judged(job: Job, slides: Sequence[SlideSize]) -> Estimate:
    """Return the cells that are predicted: of cohorts all, of training slides those of validation."""
    return total(used_cells(size) * (1.0 if size.role == "cohort" else job.params["shares"][1]) for size in slides)


def _training(
    job: Job, settings: Mapping[str, Any], slides: Sequence[SlideSize], operations: float, once: float = 0.0
) -> Work:
    """Return the work of a training: its epochs with their validations, and ``once`` a pass over its cells before."""
    run = settings["trainer"]
    _, train, val = _cells(job, slides)
    turns = epochs(run)
    again = 4 / 3 if run.get("gradient_checkpointing") else 1.0
    validations = 1.0 / float(run.get("validate_every", 1.0))
    passes = turns * (train * BACKWARD * again + val * validations) + (train + val) * once
    kcells = (turns * (train + val * validations) + (train + val) * once) * 1e-3
    return Work(kcells, NOTHING, NOTHING, passes * operations, turns, (train + val) * 1e-3)


def _local(job: Job, slides: Sequence[SlideSize]) -> Work:
    section = job.params["models"]["local"]
    return _training(job, section, slides, gflop(section["backbone"]))


def _global(job: Job, slides: Sequence[SlideSize]) -> Work:
    # The network is that of the local model, whose settings the checkpoint tells; the study's stand in `local`.
    return _training(job, job.params["models"]["global"], slides, gflop(job.params["local_backbone"]), once=1.0)


def _gate(job: Job, slides: Sequence[SlideSize]) -> Work:
    section = job.params["models"]["gate"]
    _, _, val = _cells(job, slides)
    views = 1.0 + float(section.get("views", 0))
    passes = val * (2.0 * views)
    return Work(passes * 0.5e-3, NOTHING, NOTHING, passes * gflop(job.params["local_backbone"]))


def _pretrain(job: Job, slides: Sequence[SlideSize]) -> Work:
    section = job.params["models"]["context"]
    run = section["pretrain"]
    _, train, val = _cells(job, slides)
    drawn = Estimate(*(min(float(run["samples_per_epoch"]), n) for n in (train.low, train.expected, train.high)))
    turns = epochs(run["trainer"])
    passes = turns * (drawn * BACKWARD + val)
    once = (drawn + val) * 1e-3
    return Work(turns * once, NOTHING, NOTHING, passes * gflop(section["backbone"]), turns, once)


def _embed(job: Job, slides: Sequence[SlideSize]) -> Work:
    section = job.params["models"]["context"]
    used, train, val = _cells(job, slides)
    # Views are kept of train and val cells, not of those in the buffer.
    views = float(section.get("views", 0)) if job.rule.startswith("embed_training") else 0.0
    passes = used + (train + val) * (0.9 * views)
    return Work(passes * 1e-3, NOTHING, NOTHING, passes * gflop(section["backbone"]))


def _predict(job: Job, slides: Sequence[SlideSize]) -> Work:
    cells = _judged(job, slides)
    both = 1.0 if list(job.params.get("names") or []) == ["local"] else 2.0
    return Work(cells * 1e-3, NOTHING, NOTHING, cells * (both * gflop(job.params["local_backbone"])))


def _baseline_networks(job: Job) -> float:
    """Return the operations of all networks of a job, one after the other."""
    sections = job.params["baselines"]
    names = job.params.get("names") or [job.params.get("name") or job.wildcards.get("baseline", "")]
    wanted = {str(name).removesuffix("_finetuned") for name in names if not str(name).endswith("_linear")}
    return sum(gflop(sections[name]["backbone"]) for name in wanted if name in sections)


def _embed_baseline(job: Job, slides: Sequence[SlideSize]) -> Work:
    used, _, _ = _cells(job, slides)
    return Work(used * 1e-3, NOTHING, NOTHING, used * _baseline_networks(job))


def _finetune(job: Job, slides: Sequence[SlideSize]) -> Work:
    return _training(job, job.params["models"]["baselines"]["finetuned"], slides, _baseline_networks(job))


def _predict_baseline(job: Job, slides: Sequence[SlideSize]) -> Work:
    cells = _judged(job, slides)
    return Work(cells * 1e-3, NOTHING, NOTHING, cells * _baseline_networks(job))


def _compare_fusions(job: Job, slides: Sequence[SlideSize]) -> Work:
    return Work(_judged(job, slides) * 1e-3)


def _maps(job: Job, networks: float) -> Work:
    """Return the work of activation maps of the shown cells, by the operations of all passes of one cell."""
    return Work(gflop=Estimate.exactly(float(job.params["shown"]) * networks))


def _gradcam(job: Job, slides: Sequence[SlideSize]) -> Work:
    # One map of the local model and two of the global one, whose networks are alike; the context twice: features, map.
    return _maps(job, 3.0 * gflop(job.params["local_backbone"]) + 2.0 * gflop(job.params["context_backbone"]))


def _controls(job: Job, slides: Sequence[SlideSize]) -> Work:
    return _maps(job, CONTROL_PASSES * gflop(job.params["local_backbone"]))


def _baseline_maps(job: Job, slides: Sequence[SlideSize]) -> Work:
    return _maps(job, _baseline_networks(job))


_NETWORKS = {
    "train_local": _local,
    "train_global": _global,
    "train_gate": _gate,
    "pretrain_context": _pretrain,
    "embed_context": _embed,
    "predict": _predict,
    "embed_baseline": _embed_baseline,
    "train_baseline_finetuned": _finetune,
    "predict_baseline": _predict_baseline,
    "compare_fusions": _compare_fusions,
    "compute_gradcam": _gradcam,
    "compute_controls": _controls,
    "compute_baseline_maps": _baseline_maps,
}
