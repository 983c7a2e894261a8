"""What a study needs of network and disk, reckoned before anything is spent: downloads by slide, disk by folder.

All sizes are in bytes; 1 GB = 10^9 bytes. A number that is not known yet is an :class:`Estimate`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.names import GATE, GLOBAL, LOCAL
from nuclass.core.own_files import own_file
from nuclass.core.patch_rows import PATCHES
from nuclass.core.sizes import (
    BUNDLES,
    DATASETS,
    MPP_UNKNOWN,
    NOTHING,
    Estimate,
    SlideSize,
    folder_bytes,
    is_of,
    read_facts,
    read_table,
    slide_sizes,
    total,
)

if TYPE_CHECKING:
    from nuclass.core.config import Study

DATASET_FILES = Path("resources/dataset_files.tsv")
OUTS, HE, GROUPS = "outs.zip, some members", "H&E", "cell_groups"

NETWORKS = {
    # name: (parameters, width of the features); held against the registry by a test
    "uni2-h": (681_394_176, 1536),
    "dinov3-vitl16": (303_129_600, 1024),
    "plip": (87_849_216, 512),
    "loki": (306_724_864, 768),
    "musk": (303_936_512, 1024),
    "demo-context": (761_472, 128),
    "demo-local": (476_958, 160),
}
SMALL_NETWORK = (500_000, 256)
"""Taken for a network that is built from its settings, as the demo's are."""

# Share of a slide's cells that are used: assumed for real panels, measured on the demo's slides.
LABELLED = Estimate(0.50, 0.80, 0.95)
LABELLED_SYNTHETIC = Estimate(0.91, 0.93, 0.94)
BUFFER = 0.12
"""Share of a training slide's cells that lie between splits and are used by none; of the demo, and of drawn slides."""

# Members of outs.zip that are fetched, bytes a cell: table of cells 50, matrix 110 to 2,500, two tables of outlines 280
# each. The whole zip, which comes where a server knows no ranges: 54 to 81 kB a cell of those whose size is recorded.
MEMBERS_A_CELL = Estimate(500, 1_000, 4_000)
ZIP_A_CELL = 81_000
GROUPS_A_CELL = Estimate(30, 40, 60)
DAPI_PX = Estimate(0.5, 1.0, 2.0)
# The one H&E of the list whose size is recorded has 1.5 bytes a px of its own.
HE_PX = Estimate(0.3, 0.8, 1.5)
# Measured on drawn slides: 3.4 to 3.8 with hardly any glass; 4 is without compression, pyramid included.
STORE_PX = Estimate(1.5, 3.0, 4.0)
STORE_PX_SYNTHETIC = Estimate(3.6, 3.8, 4.0)
INVERTED = 0.37
"""Px of a slide at the scale of the flaw inverted_mpp, of those at its own."""
EXPLORER_PX = Estimate(0.08, 0.19, 0.3)
# Files of one slide that do not grow with it: pictures of alignment, labels, split.
PICTURES = 2.0e6
CELL_TABLES = Estimate(100, 140, 200)
LABEL_TABLES = Estimate(90, 130, 300)
PREDICTED_CLASSES = 190
"""Bytes a cell of a model's table and arrays beside its embedding, with 16 classes."""
STATE_A_PARAMETER = 12 + 4
"""Weights and the optimizer's two moments, float32; beside them the weights of the best validation."""
BY_WAY_OF_WORK = ("results/models", "results/variants", "results/features", "results/predictions")
"""Folders whose files are made in ``work`` first."""
AT_ONCE = 16
"""Trainings that run at once, at the most."""
FETCHED_AT_ONCE = 4
"""Slides that are fetched at once, at the most: ``downloads`` of profiles/slurm."""
REPORTS = Estimate(60e6, 100e6, 300e6)
SYNTHETIC_BUNDLE = Estimate(24e6, 26e6, 28e6)


@dataclass(frozen=True)
class Download:
    """A file that is fetched for a slide.

    Attributes
    ----------
    size
        Bytes that come by the network in all.
    kept
        Bytes of it that stay on the disk.
    here
        Bytes of it that lie here already.
    done
        Whether it lies here whole.
    rests_on
        Where the size comes from, in words.
    """

    slide: str
    file: str
    size: Estimate
    kept: Estimate
    here: float
    done: bool
    rests_on: str

    @property
    def left(self) -> Estimate:
        """Bytes that are still to come."""
        return NOTHING if self.done else self.size.left(self.here)


@dataclass(frozen=True)
class Folder:
    """What a folder of the study will hold.

    Attributes
    ----------
    kept
        Bytes that stay.
    coming
        Bytes of these that the rules write which still run, at the most.
    passing
        Bytes that lie there for a time besides, at the most, while those rules run.
    here
        Bytes that lie there now.
    """

    folder: str
    kept: Estimate
    coming: Estimate
    passing: Estimate
    here: float

    @property
    def full(self) -> bool:
        """Whether what is expected of it is there."""
        return self.here >= self.kept.expected > 0

    @property
    def left(self) -> Estimate:
        """Bytes that must be free for it now."""
        rest, most = (self.kept + self.passing).left(self.here), self.coming + self.passing
        return Estimate(min(rest.low, most.low), min(rest.expected, most.expected), min(rest.high, most.high))


@dataclass(frozen=True)
class Needs:
    """What a study needs.

    ``slides`` by name, ``downloads`` by slide and file, ``folders`` by place; sums are of all slides and folders.
    ``weights`` has the bytes of the published networks' weights, which are brought by hand.
    """

    slides: Mapping[str, SlideSize]
    downloads: tuple[Download, ...]
    folders: tuple[Folder, ...]
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def to_download(self) -> Estimate:
        """Bytes that are still to come by the network."""
        return total(download.left for download in self.downloads)

    @property
    def kept(self) -> Estimate:
        """Bytes of disk that the finished study holds."""
        return total(folder.kept for folder in self.folders)

    @property
    def peak(self) -> Estimate:
        """Bytes of disk that the study holds at most from now on."""
        return self.kept + total(folder.passing for folder in self.folders)

    @property
    def to_free(self) -> Estimate:
        """Bytes that must be free on the disk now, folder by folder: what is still written, less what lies there."""
        return total(folder.left for folder in self.folders)


def study_needs(
    study: Study, root: str | Path = ".", rules: Collection[str] | None = None, needed: Collection[str] | None = None
) -> Needs:
    """Return what a study needs of network and disk.

    Parameters
    ----------
    study
        The checked study.
    root
        Its folder.
    rules
        The rules that will run or have run, where not all goals are meant; the others' files do not count.
    needed
        Those of them that still have jobs to run; without, all.
    """
    place = Path(root)
    rows = {str(slide): {str(key): value for key, value in row.items()} for slide, row in _rows(study).items()}
    sizes = slide_sizes(rows, study.config["mpp"], study.config["windows"], place)
    brought = _downloads(study, rows, sizes, place) if _wanted(rules, "fetch_bundle") else ()
    folders = _folders(study, sizes, brought, place, rules, rules if needed is None else needed)
    return Needs(sizes, tuple(brought), tuple(folders), _weights(study.models, rules))


def _rows(study: Study) -> dict[Any, dict[Any, Any]]:
    return study.slides.to_dict("index")


def _wanted(rules: Collection[str] | None, *names: str) -> bool:
    return rules is None or any(name in rules for name in names)


def _downloads(
    study: Study, rows: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, SlideSize], root: Path
) -> list[Download]:
    records = read_table(own_file(DATASET_FILES, root))
    facts = read_facts(own_file(DATASETS, root))
    found = []
    for slide, row in rows.items():
        if row["source"] != "dataset":
            continue
        align = row["align"] or study.config["alignment"]["align"]
        files = {name: _recorded(records, str(row["dataset"]), name) for name in ("outs", "he", "cell_groups")}
        fact = facts.get(str(row["dataset"]), "")
        # The list of a slide's files is written when all of them are there.
        listed, own = (root / BUNDLES / slide / "bundle.json").is_file(), is_of(slide, row, root)
        for name, size, kept, told in _files(row, sizes[slide], files, fact, align == "register"):
            here = _here(root / BUNDLES / slide, name) if own or not listed else 0.0
            found.append(Download(slide, name, size, kept, here, listed and own, told))
    return found


def _files(
    row: Mapping[str, Any], size: SlideSize, files: Mapping[str, float | None], fact: str, image: bool
) -> Iterable[tuple[str, Estimate, Estimate, str]]:
    """Return name, bytes that come, bytes that stay, and what they rest on, of the files of a public dataset."""
    if not row["path"]:
        members = size.cells * MEMBERS_A_CELL + (size.mpx * 1e6 * DAPI_PX if image else NOTHING)
        whole = max(files["outs"] or size.cells.high * ZIP_A_CELL, members.high)
        told = "by the cells; at most the whole zip, from a server without ranges"
        yield OUTS, Estimate(members.low, members.expected, whole), members, told
    if not row["he"]:
        native = re.search(r"(\d+)x(\d+) px", fact)
        px = Estimate.exactly(int(native[1]) * int(native[2])) if native else size.mpx * (0.25 / MPP_UNKNOWN) ** 2 * 1e6
        picture = Estimate.exactly(files["he"]) if files["he"] else px * HE_PX
        told = "of resources/dataset_files.tsv" if files["he"] else "by its px, 0.3 to 1.5 bytes each"
        yield HE, picture, picture, told
    if files["cell_groups"] is not None and not row["given"]:
        recorded = files["cell_groups"]
        groups = Estimate.exactly(recorded) if recorded else size.cells * GROUPS_A_CELL
        yield GROUPS, groups, groups, "of resources/dataset_files.tsv" if recorded else "by the cells"


def _recorded(records: Iterable[Mapping[str, str]], dataset: str, file: str) -> float | None:
    """Return the recorded bytes of a file: exact, else by the note; 0 where only its address is known, None without."""
    known = [row for row in records if row["dataset"] == dataset and row["file"] == file and row.get("url")]
    for row in known:
        if row.get("bytes"):
            return float(row["bytes"])
        note = re.search(r"([\d.]+) (GB|MB)", row.get("size_note", ""))
        if note:
            return float(note[1]) * (1e9 if note[2] == "GB" else 1e6)
    return 0.0 if known else None


def _here(folder: Path, name: str) -> float:
    """Return how many bytes of a download lie in a slide's folder."""
    if not folder.is_dir():
        return 0.0
    picture = [file for file in folder.glob("*_he_*image.ome.tif*") if ".json" not in file.name]
    groups = list(folder.glob("*_cell_groups.csv"))
    if name == HE:
        return _sum(picture)
    if name == GROUPS:
        return _sum(groups)
    return _sum(file for file in folder.rglob("*") if file.is_file() and file not in {*picture, *groups})


def _sum(files: Iterable[Path]) -> float:
    return float(sum(file.lstat().st_size for file in files))


def _folders(
    study: Study,
    sizes: Mapping[str, SlideSize],
    brought: Iterable[Download],
    root: Path,
    rules: Collection[str] | None,
    needed: Collection[str] | None,
) -> Iterable[Folder]:
    """Return what each folder holds, from the stages that write into it."""
    whole: dict[str, list[Estimate]] = {}
    coming: dict[str, list[Estimate]] = {BUNDLES: []}

    def add(folder: str, size: Estimate, *makers: str) -> None:
        if _wanted(rules, *makers):
            whole.setdefault(folder, []).append(size)
            coming.setdefault(folder, []).extend([size] * _wanted(needed, *makers))

    add(BUNDLES, total(download.kept for download in brought), "fetch_bundle")
    if _wanted(needed, "fetch_bundle"):
        coming[BUNDLES] = [download.kept.left(download.here) for download in brought if not download.done]
    for size in sizes.values():
        _add_slide(study, size, add)
    _add_models(study, sizes, add)
    _add_variants(study, sizes, add)
    add("results/figures", REPORTS, "draw_confusion", "render_report")
    passing = {"work": _passing(study, sizes, needed)}
    if _wanted(needed, "fetch_bundle"):
        passing[BUNDLES] = _zip(brought)
    for folder in dict.fromkeys([*whole, *(name for name, size in passing.items() if size.high)]):
        kept, more = total(whole.get(folder, [])), total(coming.get(folder, []))
        yield Folder(folder, kept, more, passing.get(folder, NOTHING), folder_bytes(root / folder))


def _add_slide(study: Study, size: SlideSize, add: Any) -> None:
    """Add the files of one slide up to its features and predictions."""
    models, cohort = study.models, size.role == "cohort"
    used = used_cells(size)
    shown = study.config["figures"]["explorer"]["slides"]
    if size.source == "synthetic":
        add(BUNDLES, SYNTHETIC_BUNDLE, "simulate_bundle")
    if size.source != PATCHES:
        px = size.mpx * 1e6 * (STORE_PX_SYNTHETIC if size.source == "synthetic" else STORE_PX)
        add("results/slides", px + size.cells * CELL_TABLES + Estimate.exactly(PICTURES), "build_slide")
    add("results/labels", size.cells * LABEL_TABLES + Estimate.exactly(PICTURES), "label_cells", "import_patches")
    add("results/splits", size.cells * 6 + Estimate.exactly(1e5), "split_cells")
    context = 2.0 * _context_width(models)
    views = models["context"]["views"] * (not cohort) * 0.9
    add("results/features", used * context * (1 + views), "embed_context", "embed_training_context")
    for _, width in _baselines(models).values():
        add("results/features", used * 2.0 * width, "embed_baseline", "embed_stand_ins")
    judged = used if cohort else used * split_shares(study.config)[1]
    widths = _widths(models)
    add("results/predictions", judged * float(sum(2 * w + PREDICTED_CLASSES for w in widths.values())), "predict")
    if cohort:
        heads = float(sum(2 * (2 * width + PREDICTED_CLASSES) for _, width in _baselines(models).values()))
        add("results/predictions", judged * heads, "predict_baseline", "predict_baseline_linear", "predict_stand_ins")
        # Each cohort by itself and all of them together.
        arrays = float(sum(2 * (2 * width + 2 * PREDICTED_CLASSES) for width in widths.values()))
        add("results/evaluation", judged * arrays, "evaluate_cohort")
    if size.slide in shown or (cohort and not shown):
        add("results/explorer", size.mpx * 1e6 * EXPLORER_PX + size.cells * 60, "cut_explorer_tiles")


def _add_models(study: Study, sizes: Mapping[str, SlideSize], add: Any) -> None:
    for name, rule in ((LOCAL, "train_local"), (GLOBAL, "train_global"), (GATE, "train_gate")):
        add("results/models", _checkpoint(study.models, name, sizes), rule)
    for parameters, _ in _baselines(study.models).values():
        add("results/models", Estimate.exactly(4.0 * parameters), "train_baseline_finetuned")
    if study.models["context"]["pretrain"]:
        add("results/backbones", Estimate.exactly(4.0 * _network(study.models, "context")[0]), "pretrain_context")


def _add_variants(study: Study, sizes: Mapping[str, SlideSize], add: Any) -> None:
    """Add what runs under changed settings make themselves; what they share is counted where it lies."""
    folder, variants = "results/variants", study.variants
    for name in variants.members:
        own = set(variants.own(name))
        for model in (LOCAL, GLOBAL, GATE):
            if model in own:
                add(folder, _checkpoint(study.models, model, sizes), f"train_{model}_variant")
        for size in sizes.values():
            used = used_cells(size)
            if "slides" in own and size.source != PATCHES:
                pixel = STORE_PX_SYNTHETIC if size.source == "synthetic" else STORE_PX
                add(folder, size.mpx * 1e6 * INVERTED * pixel + size.cells * CELL_TABLES, "build_slide_variant")
            features = used * 2.0 * _context_width(study.models)
            if "context" in own:
                add(folder, features, "embed_context_variant", "embed_training_context_variant")
            if "gate_context" in own:
                add(folder, features, "embed_gate_context_variant")
            width = _widths(study.models)
            judged = used if size.role == "cohort" else used * split_shares(study.config)[1]
            made = [w for model, w in width.items() if f"predict_{model}" in own]
            add(folder, judged * float(sum(2 * w + PREDICTED_CLASSES for w in made)), "predict_variant")


def _passing(study: Study, sizes: Mapping[str, SlideSize], needed: Collection[str] | None) -> Estimate:
    """Return the bytes of running states: of one job of a kind, of two, of up to sixteen at once.

    The state of a training and its best weights are written beside those before them. Features and predictions lie in
    parts until the last is there and all of them are joined.
    """
    trainings = sum(_wanted(needed, f"train_{model}") for model in (LOCAL, GLOBAL))
    trainings += len(_baselines(study.models)) * _wanted(needed, "train_baseline_finetuned")
    if _wanted(needed, "train_local_variant", "train_global_variant"):
        trainings += len(study.variants.members)
    state = Estimate.exactly(2.0 * STATE_A_PARAMETER * _network(study.models, LOCAL)[0])
    return _at_once([state] * trainings) + _at_once([_parts(study, size, needed) for size in sizes.values()])


def _at_once(states: Iterable[Estimate]) -> Estimate:
    """Return the sum of the largest one, of the two largest, and of the largest that may be there at once."""
    low, expected, high = (
        sorted((getattr(state, which) for state in states), reverse=True) for which in ("low", "expected", "high")
    )
    return Estimate(sum(low[:1]), sum(expected[:2]), sum(high[:AT_ONCE]))


def _parts(study: Study, size: SlideSize, needed: Collection[str] | None) -> Estimate:
    """Return the bytes of the parts of a slide's features, or of its predictions where those are more."""
    train, embedded = size.role == "train", ("embed_context", "embed_training_context", "embed_gate_context")
    features = _context_width(study.models) * (1 + 0.9 * train * study.models["context"]["views"])
    predicted = _widths(study.models)[GATE] * (split_shares(study.config)[1] if train else 1.0)
    wanted = [features * _wanted(needed, *embedded, *(f"{rule}_variant" for rule in embedded))]
    wanted += [predicted * _wanted(needed, "predict", "predict_variant")]
    return used_cells(size) * (2.0 * max(wanted))


def _zip(brought: Iterable[Download]) -> Estimate:
    """Return what whole zips take beside the members taken out of them: the largest of so many slides at once.

    Only in ``high``, for they come only where a server knows no ranges; each stays until its last member is out.
    """
    whole = sorted((file.size.high for file in brought if file.file == OUTS and not file.done), reverse=True)
    return Estimate(0.0, 0.0, sum(whole[:FETCHED_AT_ONCE]))


def _network(models: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Return parameters and width of the network of a section."""
    backbone = models[name].get("backbone") or {}
    kwargs = backbone.get("kwargs") or {}
    width = (
        (backbone.get("config") or {}).get("hidden_size")
        or kwargs.get("embed_dim")
        or [*kwargs.get("channels", [0])][-1]
    )
    return NETWORKS.get(str(backbone.get("name")), (SMALL_NETWORK[0], int(width or SMALL_NETWORK[1])))


def _baselines(models: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    section = models.get("baselines") or {}
    own = {name: part for name, part in section.items() if isinstance(part, Mapping) and "backbone" in part}
    return {name: _network(own, name) for name in own}


def _weights(models: Mapping[str, Any], rules: Collection[str] | None) -> dict[str, float]:
    """Return the bytes of published weights by name, float32; those of baselines only where these run."""
    sections = [models["context"], models[LOCAL]]
    if _wanted(rules, "embed_baseline", "train_baseline_finetuned"):
        sections += [part for part in (models.get("baselines") or {}).values() if isinstance(part, Mapping)]
    names = [str((section.get("backbone") or {}).get("name")) for section in sections]
    published = [name for name in names if name in NETWORKS and not name.startswith("demo-")]
    return {name: 4.0 * NETWORKS[name][0] for name in published}


def split_shares(config: Mapping[str, Any]) -> tuple[float, float]:
    """Return which shares of a training slide's labelled cells are trained on, and choose the models."""
    splits = config["splits"]
    folds = int(splits["folds"]) if splits["hold_out"] == "none" else 0
    val = 1 / folds if folds else float(splits["val"])
    test = 0.0 if folds else float(splits["test"])
    return (1 - val - test) * (1 - BUFFER), val * (1 - BUFFER)


def used_cells(size: SlideSize) -> Estimate:
    """Return how many cells of a slide get a label and are not left out."""
    return size.cells * (LABELLED_SYNTHETIC if size.source == "synthetic" else LABELLED)


def _context_width(models: Mapping[str, Any]) -> int:
    return int(_network(models, "context")[1] * len(str(models["context"]["pooling"]).split("+")))


def _widths(models: Mapping[str, Any]) -> dict[str, int]:
    """Return the width of each model's embedding."""
    local, wide = _network(models, LOCAL)[1], 2 * int(models[GLOBAL]["model"]["project"])
    return {LOCAL: local, GLOBAL: wide, GATE: local + wide}


def _checkpoint(models: Mapping[str, Any], model: str, sizes: Mapping[str, SlideSize]) -> Estimate:
    """Return the bytes of a checkpoint: its weights, and the ids of the cells it was trained with."""
    parameters = 0 if model == GATE else _network(models, LOCAL)[0]
    ids = total(used_cells(size) * 16 for size in sizes.values() if size.role == "train")
    return Estimate.exactly(4.0 * parameters + 1e5) + ids * (0.25 if model == GATE else 1.0)
