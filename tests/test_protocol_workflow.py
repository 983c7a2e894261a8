"""The switches in the workflow: what one of them makes again, and what it leaves."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nuclass.core.config import load_study, merge_files
from nuclass.core.protocol import STAGES
from test_workflow import REPOSITORY, copy, snakemake

__all__ = ["copy"]
STUB = '''"""Make the outputs of a rule, empty or as short as the next rule can bear."""

from pathlib import Path

for name in map(str, snakemake.output):
    path = Path(name)
    (path if path.suffix == ".zarr" else path.parent).mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pandas as pd

        pd.DataFrame({"cell_id": ["a-1"] * 5}).to_parquet(path)
    elif path.suffix != ".zarr":
        path.write_text("")
'''
SLIDES = ("ovary_1", "lung_1", "ovary_h")
GOALS = [f"results/predictions/gate/{slide}.parquet" for slide in SLIDES]
BEFORE = {"simulate_bundle", "align_slide"}
PLACED = {"build_slide"}
DIVIDED = {"label_cells", "split_cells"}
CONTEXT = {"pretrain_context", "embed_context", "embed_training_context"}
TRAINED = {"train_local", "train_global"}
LAST = {"train_gate", "predict"}


def jobs_of(told: str) -> set[str]:
    """Return the rules of a dry run."""
    table = told.split("Job stats:")[-1].split("total")[0]
    return {match[1] for match in re.finditer(r"^(\w+) +\d+$", table, re.MULTILINE)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A small study that has run, with scripts that only make their files; rules and parameters are the real ones."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("config", "resources", "rules", "scripts", "workflow", "envs", "src", "profiles"):
        skipped = shutil.ignore_patterns("bundles", "truth", "__pycache__", "slurm")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skipped)
    for script in (folder / "scripts").glob("*.py"):
        script.write_text(STUB, encoding="utf-8")
    sheet = folder / "config/slides.tsv"
    kept = [line for line in sheet.read_text(encoding="utf-8").splitlines() if line.startswith(("slide", *SLIDES))]
    sheet.write_text("\n".join(kept) + "\n", encoding="utf-8")
    done = snakemake("--cores", "2", "--quiet", "all", "--", *GOALS, folder=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not jobs_of(snakemake("-n", "--", *GOALS, folder=folder).stdout), "nothing is left to do"
    return folder


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("protocol", "again"),
    [
        ("{base: corrected, label_in_gate: false}", set()),
        ("{label_in_gate: true}", {"train_global"} | LAST),
        ("{test_as_val: true}", {"embed_training_context"} | TRAINED | LAST),
        ("{smaller_gate_context: true}", {"embed_gate_context"} | LAST),
        ("{no_buffer: true}", {"split_cells"} | CONTEXT | TRAINED | LAST),
        ("{inverted_mpp: true}", PLACED | DIVIDED | CONTEXT | TRAINED | LAST),
        ("released", PLACED | DIVIDED | CONTEXT | TRAINED | LAST | {"embed_gate_context"}),
    ],
)
def test_a_switch_makes_again_only_what_it_changes(finished, protocol, again):
    done = snakemake("-n", "--config", f"protocol={protocol}", "--", *GOALS, folder=finished)
    assert done.returncode == 0, done.stdout + done.stderr
    assert jobs_of(done.stdout) - {"check_panel"} == again


@pytest.mark.workflow
@pytest.mark.parametrize("arguments", [[], ["--configfile", "config/paper.yaml"]], ids=["demo", "paper"])
def test_the_released_protocol_is_a_whole_study(copy, arguments):
    done = snakemake("-n", *arguments, "--config", "protocol=released", "--", "all", folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    slides = 11 if arguments else 8
    counts = {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    for name, number in {
        "build_slide": slides,
        "embed_gate_context": slides,
        "train_gate": 1,
        "render_report": 1,
    }.items():
        assert counts.get(name) == number, name


@pytest.mark.workflow
def test_a_misspelt_switch_stops_the_workflow(copy):
    done = snakemake("-n", "--config", "protocol={label_in_gat: true}", folder=copy)
    assert done.returncode == 1
    assert "the command line (--config)" in done.stdout + done.stderr
    assert "Did you mean 'label_in_gate'?" in done.stdout + done.stderr


SNAKEMAKE_MB = 400


class Inputs(dict):
    """The inputs of a rule."""

    cells: list[str]


def asked(folder: Path, models: str, **trainer: object) -> dict[str, int]:
    """Return what the rule train_local asks for ten cells and 3 MB of features."""
    names = [Path("config/config.yaml")]
    study = load_study({**merge_files(names, REPOSITORY), "models": models}, REPOSITORY, names)
    study.models["local"]["trainer"].update(trainer)
    names = {"CONFIG": study.config, "MODEL_CONFIG": study.models, "SNAKEMAKE_MB": SNAKEMAKE_MB, "os": os}
    exec((REPOSITORY / "rules/inputs.smk").read_text(encoding="utf-8"), names)
    pd.DataFrame({"cell_id": ["a"] * 10}).to_parquet(folder / "cells.parquet")
    (folder / "features.h5").write_bytes(bytes(3_000_000))
    inputs = Inputs(features=[folder / "features.h5"])
    inputs.cells = [folder / "cells.parquet"]
    memory = names["train_mem"]("local")
    return {
        "mem": memory(None, inputs, 1),
        "again": memory(None, inputs, 2),
        "last": memory(None, inputs, 6),
        "threads": names["train_threads"]("local"),
        "gpu": names["train_gpus"]("local"),
    }


def test_what_training_asks_of_a_machine(tmp_path):
    """Memory by the cells there are, not by the most that may be kept; threads by readers; GPUs by devices."""
    small = asked(tmp_path, "config/models/demo.yaml")
    assert 2506 <= small["mem"] - SNAKEMAKE_MB < 2520
    assert (small["threads"], small["gpu"]) == (1, 0)
    assert small["again"] == small["last"] == pytest.approx(2 * small["mem"] - SNAKEMAKE_MB, abs=1), (
        "a time limit needs no more memory"
    )
    many = asked(tmp_path, "config/models/demo.yaml", accelerator="cpu", devices=3, workers=2)
    assert (many["threads"], many["gpu"]) == (9, 0)
    assert many["mem"] == pytest.approx(small["mem"] + 3 * 2 * (500 + 64), abs=3)
    large = asked(tmp_path, "config/models/paper.yaml")
    assert (large["threads"], large["gpu"]) == (18, 1)
    assert large["mem"] == pytest.approx(SNAKEMAKE_MB + 24006 + 16 * (500 + 64), abs=10)
    assert asked(tmp_path, "config/models/paper.yaml", devices=[0, 1, 3])["gpu"] == 3
    assert asked(tmp_path, "config/models/paper.yaml", devices="auto")["gpu"] == 1
    assert asked(tmp_path, "config/models/paper.yaml", accelerator="cpu")["gpu"] == 0
    assert asked(tmp_path, "config/models/demo.yaml", memory_mb=0)["mem"] == pytest.approx(SNAKEMAKE_MB + 2506, abs=1)


def test_a_gpu_that_the_settings_ask_for_is_asked_for(tmp_path):
    """A network of timm may be as large as a published one: then the settings say so."""
    demo = "config/models/demo.yaml"
    assert asked(tmp_path, demo, accelerator="auto")["gpu"] == 0
    wanted = asked(tmp_path, demo, accelerator="gpu", devices=2)
    assert (wanted["gpu"], wanted["threads"]) == (2, 4)
    assert wanted["mem"] > SNAKEMAKE_MB + 24000


def test_memory_waits_for_cells_that_are_not_there_yet(tmp_path):
    """A dry run asks before there is anything to count; Snakemake knows this error and no other."""
    names = {"CONFIG": {}, "MODEL_CONFIG": {}, "os": os}
    text = (REPOSITORY / "rules/inputs.smk").read_text(encoding="utf-8")
    exec(text[text.index("def rows_of") :], names)
    with pytest.raises(FileNotFoundError) as caught:
        names["rows_of"]([str(tmp_path / "cells.parquet")])
    assert caught.value.filename == str(tmp_path / "cells.parquet")


def test_every_switch_has_a_place_in_the_rules():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "rules").glob("*.smk")))
    for stage in STAGES:
        used = f'"{stage}"' in text.replace("'", '"')
        assert used or all(f"PROTOCOL.{name}" in text for name in STAGES[stage]), stage
