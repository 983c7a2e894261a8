"""The checked study, lists of slides and code hashes, for all other files."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.sourcecache import GenericSourceFile


def workflow_folder(rules):
    """Return the folder that holds the folder of these rules; one that lies in a git repository alone is unpacked.

    So it is where another workflow names this one by a repository and a version: scripts and rules are then read out
    of Snakemake's clone one by one, but the library and the tables are wanted as files.
    """
    here = Path(rules.get_path_or_uri(secret_free=True))
    if here.is_dir():
        return here.parent
    if isinstance(rules, GenericSourceFile):
        raise WorkflowError(
            f"{rules}: the workflow cannot be read from a bare address. Name a clone, or a repository and a version: "
            'github("OWNER/REPOSITORY", path="workflow/Snakefile", tag="VERSION")'
        )
    clone = getattr(rules, "repo_path", None) or rules.hosted_repo.repo_clone
    git = ["git", "-C", str(clone)]
    commit = subprocess.run([*git, "rev-parse", f"{rules.ref}^{{commit}}"], capture_output=True, text=True, check=True)
    folder = Path(".snakemake", "nuclass", commit.stdout.strip()).absolute()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run([*git, "archive", "--format=tar", folder.name], capture_output=True, check=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as unpacked:
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(f"{unpacked}/whole", filter="data")
            # Another process of the same run may have been faster.
            if not folder.is_dir():
                os.rename(f"{unpacked}/whole", folder)
    return folder


ROOT = workflow_folder(workflow.current_basedir)
LIBRARY = str(ROOT / "src")

# Jobs import the library from here, also inside their own conda environment and on a cluster node.
_others = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place not in ("", LIBRARY)]
os.environ.update(PYTHONPATH=os.pathsep.join([LIBRARY, *_others]))
if LIBRARY not in sys.path:
    sys.path.insert(0, LIBRARY)

from nuclass.core.code import code_hash
from nuclass.core.config import load_study, settings_of_module
from nuclass.core.errors import UserError
from nuclass.core.bundle_source import parse_given
from nuclass.core.own_files import own_file
from nuclass.core.patch_rows import PATCHES, find_patches
from nuclass.core.protocol import flaws, switches_of
from nuclass.labels.given import check_given
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology
from nuclass.patches.annotations import peek_annotations
from nuclass.training.config import parse_models
from nuclass.xenium.alignment import read_alignment
from nuclass.xenium.fetch import check_offline, needs_image
from nuclass.xenium.slide_folder import local_inputs

# Used by another workflow (docs/module.md): its settings come in place of config/config.yaml.
AS_MODULE = not workflow.modifier.is_main_snakefile()
# The default file is merged first, then those of --configfile in their order.
CONFIG_FILES = [] if AS_MODULE else [*workflow.configfiles[-1:], *workflow.configfiles[:-1]]
_paths = getattr(workflow.modifier, "path_modifier", None)

try:
    if getattr(_paths, "prefix", None) or getattr(_paths, "modifies_prefixes", False):
        raise UserError(
            "This workflow cannot be used with a prefix of its paths",
            where="the module's prefix or replace_prefix",
            expected="none: it writes results/, resources/bundles/, work/, logs/ and benchmarks/ of the working folder",
            fix="take the prefix out; for names of its own write: use rule * from nuclass as nuclass_*",
        )
    STUDY = load_study(
        settings_of_module(config) if AS_MODULE else config,
        root=".",
        files=CONFIG_FILES,
        schemas=ROOT / "config" / "schemas",
        tables={"ontology": load_ontology},
        read_alignment=read_alignment,
        read_given=check_given,
        read_markers=load_markers,
        peek_patches=peek_annotations,
        check_models=parse_models,
    )
    check_offline(STUDY.config, STUDY.slides)
except UserError as error:
    logger.error(str(error))
    sys.exit(1)

config.update(STUDY.config)
CONFIG = config
MODEL_CONFIG = STUDY.models
PROTOCOL = STUDY.protocol
FLAWS = flaws(PROTOCOL)
SLIDES = STUDY.slides
TRAIN_SLIDES = STUDY.train_slides
COHORTS = STUDY.cohorts
ALL_SLIDES = list(SLIDES.index)
# Slides with a bundle and an H&E; the others come as files of windows.
BUNDLE_SLIDES = list(SLIDES.index[SLIDES["source"] != PATCHES])
MODELS = ["local", "global", "gate"]
OWN_MARKERS = [table for table in [CONFIG["labels"]["extra_markers"]] if table]


wildcard_constraints:
    slide="|".join(ALL_SLIDES),
    cohort="|".join(COHORTS),
    model="|".join(MODELS),


def lift_start_limit():
    """Lift Snakemake's default limit of starts per second, before the first job; a limit that was asked for stays.

    With a limit, Snakemake 9 looks again for work a second after each look: every finished job begins a chain of looks
    of its own, and after a hundred jobs the scheduler keeps half a core busy.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit is not None and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def trained_first(wildcards):
    """Return the priority of a slide's preparation: cohorts wait, for no training waits for them."""
    return 3 if wildcards.slide in TRAIN_SLIDES else 2


def own(path):
    """Return a file that comes along with the workflow, seen from the working folder."""
    return os.path.relpath(ROOT / path)


def slide_row(slide, *columns):
    """Return a slide's row of the sheet as a dictionary: the given columns, or all."""
    row = {"slide": slide, **SLIDES.loc[slide].to_dict()}
    return {column: row[column] for column in columns or row}


def fetch_row(slide):
    """Return what the sheet says of a slide's files, with the configuration's word where `align` is empty."""
    row = slide_row(slide, "slide", "source", "dataset", "path", "he", "alignment", "align", "given")
    # Where one's own labels lie is not fetch's concern.
    row["given"] = row["given"] and "none"
    return row | {"align": row["align"] or CONFIG.get("alignment", {}).get("align", "given")}


def slides_from(*sources):
    """Return a pattern for the slides of the given sources; one that matches nothing where there are none."""
    return "|".join(SLIDES.index[SLIDES["source"].isin(sources)]) or "(?!)"


WITH_BUNDLE = slides_from("synthetic", "local", "dataset")


def fetch_inputs(wildcards):
    """Return what a slide is fetched from: local files, or the table of public data sets."""
    row = slide_row(wildcards.slide)
    files = local_inputs(row, f"resources/bundles/{wildcards.slide}")
    if row["source"] == "dataset":
        # A new note in the tables is no reason to download again.
        registry = Path(os.path.relpath(own_file("resources/datasets.tsv")))
        files["registry"] = ancient(str(registry))
        files["registry_files"] = ancient(str(registry.with_name("dataset_files.tsv")))
    return files


def patch_files(wildcards):
    """Return the files of a slide that comes as files of windows."""
    return [str(path) for path in find_patches(SLIDES.loc[wildcards.slide, "path"], CONFIG["windows"]).paths]


def windows_of(slide):
    """Return what the windows of a slide's cells are read from: its store, or the list of its patch files."""
    return f"results/slides/{slide}/" + ("he.ome.zarr" if slide in BUNDLE_SLIDES else "patches.json")


def windows_of_slide(wildcards):
    """Return what the windows of the slide of a job are read from."""
    return windows_of(wildcards.slide)


def own_label_files(wildcards):
    """Return the user's own files that a slide's labels rest on: given labels, a marker table."""
    given = SLIDES.loc[wildcards.slide, "given"]
    files = [parse_given(given).path] if given not in ("", "none") else []
    return files + OWN_MARKERS


def label_source(wildcards):
    """Return where a slide's labels come from: the word of its row, else that of the settings."""
    return SLIDES.loc[wildcards.slide, "labels"] or CONFIG["labels"]["source"]


def align_of(wildcards):
    """Return how a slide is aligned: the word of its row, else that of the settings."""
    return SLIDES.loc[wildcards.slide, "align"] or CONFIG["alignment"]["align"]


def is_small(wildcards):
    """Return whether a slide is a synthetic one: a thousandth of a real one in size."""
    return SLIDES.loc[wildcards.slide, "source"] == "synthetic"


def with_slide(large=None, small="slides"):
    """Return a function that names the group of a slide's job on a cluster: all jobs of a small slide go together.

    Of other slides those that say ``large`` go together; without it each is a cluster job of its own.
    """
    return lambda wildcards: small if is_small(wildcards) else large


def slide_threads(wildcards):
    """Return the threads for one slide; small ones go side by side instead."""
    return 1 if is_small(wildcards) else 8


include: "requests.smk"
include: "cluster.smk"
