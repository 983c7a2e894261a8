"""What the gate is trained on: outputs of both branches for its cells, computed once and kept on disk.

Features are kept in half precision: the gate normalises them first, so that their rounding (2^-11 of a value) moves its
weight by less than a thousandth, and they take 5.1 kB a cell instead of 10.2 at the paper's sizes. Logits are kept in
float32, for probabilities enter the loss as they are. The files are mapped, not read: two million cells take 10.5 GB of
disk and of memory that the system may take back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nuclass.core.log import get_logger
from nuclass.data.features import read_key, to_half
from nuclass.training.branches import computes_in, state_hash
from nuclass.training.config import to_plain
from nuclass.training.inputs import data_hash
from nuclass.training.row_store import RowStore
from nuclass.training.state import Identity, fingerprint

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.core.protocol import Protocol
    from nuclass.data.augment import Augment
    from nuclass.data.study import Study
    from nuclass.training.branches import Branches, BranchOutputs
    from nuclass.training.gate_cells import GateCells

_log = get_logger(__name__)


class GateInputs(NamedTuple):
    """Inputs of the gate by name, for the fitting and the selecting cells, and what they depend on.

    ``features_a`` (N, DA), ``features_b`` (N, DB) float16; ``p_a``, ``p_b`` (N, C) float32, calibrated; ``label`` (N,).
    For joint fine-tuning also ``local_b`` (N, D), features of the global model's backbone, and ``context`` (N, K),
    float16. Augmented copies of the fitting cells follow the plain ones.
    """

    fitting: dict[str, Tensor]
    selecting: dict[str, Tensor]
    key: Identity


class _Part(NamedTuple):
    """Cells to run the branches over, and how often: once plain, then augmented."""

    name: str
    frame: pd.DataFrame
    copies: int


def gate_inputs(
    branches: Branches,
    cells: GateCells,
    study: Study,
    folder: Path,
    *,
    views: int,
    augment: Augment,
    seed: int,
    joint: bool,
    protocol: Protocol,
) -> GateInputs:
    """Run both branches over the gate's cells, once; a killed pass goes on where it was.

    Parameters
    ----------
    folder
        Where outputs are kept; files of other models, cells or settings that lie there are removed.
    views, augment, seed
        Augmented copies of the fitting cells, how, and the seed.
    joint
        Keep what joint fine-tuning needs too.
    """
    parts = [_Part("cells to fit", cells.fitting, 1 + views), _Part("cells to select by", cells.selecting, 1)]
    total = sum(len(part.frame) * part.copies for part in parts)
    smaller = protocol.smaller_gate_context
    key = _key(branches, cells, study, views, augment, seed, joint, smaller)
    with RowStore(folder, key, total) as store:
        first = 0
        for part in parts:
            _run_part(branches, part, study, store, first, augment=augment, seed=seed, joint=joint, smaller=smaller)
            first += len(part.frame) * part.copies
    tensors = store.tensors()
    for name, temperature in zip("ab", branches.temperatures, strict=True):
        tensors[f"p_{name}"] = (tensors.pop(f"logits_{name}") / temperature).softmax(1)
    labels = [branches.vocabulary.encode_classes(part.frame["class"]) for part in parts]
    tensors["label"] = torch.cat(
        [torch.from_numpy(codes).repeat(part.copies) for codes, part in zip(labels, parts, strict=True)]
    )
    n = len(cells.fitting) * (1 + views)
    return GateInputs({k: v[:n] for k, v in tensors.items()}, {k: v[n:] for k, v in tensors.items()}, key)


def _key(
    branches: Branches,
    cells: GateCells,
    study: Study,
    views: int,
    augment: Augment,
    seed: int,
    joint: bool,
    smaller: bool,
) -> Identity:
    """Return a hash of all that the branches' outputs depend on."""
    slides = dict.fromkeys(str(slide) for frame in cells for slide in frame["slide"])
    files = [study.gate_features(slide) if smaller else study.features(slide) for slide in slides]
    files += [study.views(slide) for slide in slides if views and not smaller and study.views(slide).is_file()]
    return fingerprint(
        models=[state_hash(branches.model_a), state_hash(branches.model_b)],
        cells=[data_hash(study, frame) for frame in cells],
        features=[[str(file), read_key(file).digest, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        views=[views, to_plain(augment) if views else None, seed if views else None],
        kinds=[joint, smaller],
        # The order of sums depends on the batch and the device.
        batch=branches.settings.batch_size,
        device=[branches.device.type, computes_in(branches.device, branches.settings.precision)],
    )


def _run_part(
    branches: Branches,
    part: _Part,
    study: Study,
    store: RowStore,
    first: int,
    *,
    augment: Augment,
    seed: int,
    joint: bool,
    smaller: bool,
) -> None:
    """Append the outputs for one part, whose rows begin at ``first``, but for what is there already."""
    n = len(part.frame)
    if store.rows >= first + n * part.copies:
        return
    dataset = branches.dataset(part.frame, study, views=part.copies > 1, smaller=smaller)
    stored = int(dataset.extra["context"].shape[1])
    if part.copies > 1 and stored < 2:
        _log.warning("gate.views is %d, but no context features under augmentation were cached", part.copies - 1)
    ids = part.frame["cell_id"].to_numpy()
    for copy in range(part.copies):
        begin = first + copy * n
        if store.rows >= begin + n:
            continue
        view = 0 if copy == 0 or stored < 2 else 1 + (copy - 1) % (stored - 1)
        for batch, out in branches.run(
            dataset,
            view=view,
            augment=augment if copy else None,
            seed=seed * 101 + copy,
            start=(store.rows - begin) // branches.settings.batch_size,
            description=f"branches over {part.name}" + (f", copy {copy + 1} of {part.copies}" if copy else ""),
        ):
            store.append(**_rows(out, batch["context"][:, view] if joint else None, ids[batch["index"].numpy()], store))


def _rows(out: BranchOutputs, context: Tensor | None, ids: Any, store: RowStore) -> dict[str, Any]:
    """Return a batch's outputs as they are kept."""
    halves = {"features_a": out.features_a, "features_b": out.features_b}
    rows = {"logits_a": out.logits_a.cpu().numpy(), "logits_b": out.logits_b.cpu().numpy()}
    if context is not None:
        halves["local_b"] = out.local_b
        rows["context"] = context.cpu().numpy()
    return {**{name: to_half(values.cpu().numpy(), ids, store.folder) for name, values in halves.items()}, **rows}
