"""``nuclass train``: from data sets of patch files that the environment names to the files of the three models."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from nuclass.cli import main
from nuclass.core.config import load_study, merge_files
from nuclass.data.features import read_key
from nuclass.data.study import Study
from nuclass.patches.export import export_patches
from nuclass.slides.store import SlideStore
from nuclass.training.composition import pretrain_context
from nuclass.training.context import embed_context
from nuclass.training.gate import train_gate
from nuclass.training.train import train_global, train_local
from toy_study import MODELS, paint
from trio_example import store_of

torch.set_num_threads(1)
REPOSITORY = Path(__file__).parent.parent
WINDOWS = {"local": 32, "global": 128}
SLIDES = {"Lung_wsi": "lung", "Colon_wsi": "colon"}
SHORT = copy.deepcopy(MODELS)
SHORT["context"]["pretrain"]["trainer"]["max_epochs"] = 1
for _name in ("local", "global", "gate"):
    SHORT[_name]["trainer"]["max_epochs"] = 2
    SHORT[_name]["seed"] = 3
MEASURED = ("seconds", "train_seconds", "memory_mb", "cells_per_second", "seconds_per_epoch")
FILES = ("best.ckpt", "calibration.json", "history.csv", "metrics.json")


def write_data(folder: Path) -> list[Path]:
    """Write two slides as the original's files, divided into train/ and test/."""
    for seed, (slide, organ) in enumerate(SLIDES.items()):
        image, cells = paint(slide, seed + 1)
        cells = cells.assign(x_um=cells["x_px"] * 0.25, y_um=cells["y_px"] * 0.25, status="kept", reason="")
        y = cells["y_px"]
        split = np.select([y < 350, y < 380, y < 600], ["train", "buffer", "val"], "test")
        with SlideStore(store_of(folder / "stores" / slide, image, tile=64, shard=256, levels=3)) as store:
            export_patches(
                store,
                cells.drop(columns="class"),
                cells[["cell_id", "class"]].assign(status="labelled", reason=""),
                folder / slide,
                WINDOWS,
                slide=slide,
                organ=organ,
                patient=f"donor of {slide}",
                mpp=0.25,
                splits=cells[["cell_id"]].assign(split=split),
            )
    return [folder / slide for slide in SLIDES]


def write_study(folder: Path) -> Path:
    """Write the folder of a study that the user works in, and return its overlay of settings."""
    for name in ("config", "resources"):
        ignored = shutil.ignore_patterns("bundles", "truth")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    (folder / "config" / "toy.yaml").write_text(yaml.safe_dump(SHORT))
    overlay = {"windows": WINDOWS, "splits": {"buffer_um": 32}, "models": "config/toy.yaml"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(overlay))
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study's folder with data sets named by the environment; the three models trained by the command."""
    folder = tmp_path_factory.mktemp("home")
    dirs = write_data(tmp_path_factory.mktemp("data"))
    write_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NUCLASS_DATA_DIRS", os.pathsep.join(map(str, dirs)))
        for model in ("local", "global", "gate"):
            assert main(["train", model, "--configfile", "mine.yaml"]) == 0
        yield folder


@pytest.fixture
def inside(home, monkeypatch):
    """The trained study as the current folder; results are not written twice."""
    monkeypatch.chdir(home)
    return home


def rule_study(home: Path) -> tuple[dict, Study]:
    """Return what the rules hand to the scripts: the settings with the schema's defaults, and the slides."""
    files = ["config/config.yaml", "mine.yaml"]
    from nuclass.patches.annotations import peek_annotations

    loaded = load_study(merge_files(files, home), home, files, peek_patches=peek_annotations)
    rows = [
        {"slide": s, "organ": loaded.slides.loc[s, "organ"], "windows": f"results/slides/{s}/patches.json"}
        for s in loaded.train_slides
    ]
    return loaded.models, Study(
        rows, Path("results"), mpp=loaded.config["mpp"], windows=loaded.config["windows"], cache_mb=64
    )


def same(here: Path, there: Path) -> None:
    """Assert that two trained models are equal in every value."""
    assert sorted(path.name for path in here.iterdir() if path.is_file()) == list(FILES)
    one, two = (torch.load(folder / "best.ckpt", weights_only=True) for folder in (here, there))
    assert one.pop("state").keys() == two["state"].keys()
    first = torch.load(here / "best.ckpt", weights_only=True)["state"]
    assert all(torch.equal(first[key], value) for key, value in two.pop("state").items())
    assert one == two
    metrics, others = (measureless(json.loads((folder / "metrics.json").read_text())) for folder in (here, there))
    assert metrics == others


def measureless(data: dict) -> dict:
    """Return metrics without what differs from run to run: times and memory."""
    return {
        key: measureless(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if key not in MEASURED
    }


def test_the_command_gives_what_the_rules_give(inside, tmp_path):
    models, study = rule_study(inside)

    def sections(*names: str) -> dict:
        return {name: models[name] for name in names}

    backbone = tmp_path / "context"
    pretrain_context(sections("context"), study, backbone, tmp_path / "w0", models["context"]["pretrain"]["seed"])
    files = ("config.json", "model.safetensors")
    assert all((backbone / f).read_bytes() == Path("results/backbones/context", f).read_bytes() for f in files)
    for slide in (row["slide"] for row in study.slides):
        single = Study([row for row in study.slides if row["slide"] == slide], study.results, 0.25, WINDOWS)
        out, views = tmp_path / f"{slide}.h5", tmp_path / f"{slide}.views.h5"
        embed_context(
            sections("context"),
            single,
            out,
            tmp_path / "w1",
            folder=backbone,
            views_out=views,
            seed=models["global"]["seed"],
        )
        assert read_key(out) == read_key(study.features(slide))
        assert out.read_bytes() == study.features(slide).read_bytes()
        assert views.read_bytes() == study.views(slide).read_bytes()
    ours = {name: Path("results/models") / name for name in ("local", "global", "gate")}
    local, wide = ours["local"] / "best.ckpt", ours["global"] / "best.ckpt"
    train_local(sections("local"), study, tmp_path / "local", tmp_path / "w2", 3)
    own = Path("results/backbones/context")
    train_global(sections("context", "global", "predict"), study, local, tmp_path / "global", tmp_path / "w3", 3, own)
    train_gate(sections("global", "gate", "predict"), study, local, wide, tmp_path / "gate", tmp_path / "w4", 3)
    for name, folder in ours.items():
        same(folder, tmp_path / name)


def test_nothing_is_left_behind_and_nothing_done_twice(inside, capsys):
    assert not list(Path("work").rglob("*.ckpt"))
    before = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*") if path.is_file()}
    assert main(["train", "gate", "--configfile", "mine.yaml", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "2 slides: Lung_wsi (lung), Colon_wsi (colon)" in told
    assert "first" not in told
    assert "results/models/global/best.ckpt" in told
    assert "will be replaced" in told
    assert before == {path: path.stat().st_mtime_ns for path in Path("results").rglob("*") if path.is_file()}


def test_overrides_reach_the_checkpoint(inside, tmp_path, capsys):
    command = ["train", "local", "--configfile", "mine.yaml", "--out", str(tmp_path / "out"), "--seed", "9"]
    settings = ["max_epochs=1", "lr_head=1e-3", "augment.blur=0", "protocol.decay_everywhere=true"]
    assert main([*command, *(part for text in settings for part in ("-o", text))]) == 0
    data = torch.load(tmp_path / "out" / "best.ckpt", weights_only=True)
    assert data["config"]["trainer"]["max_epochs"] == 1
    assert data["config"]["optimizer"]["lr_head"] == 1e-3
    assert data["config"]["augment"]["blur"] == 0
    assert data["config"]["seed"] == 9
    assert data["protocol"] == {"decay_everywhere": True}
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file()) == list(FILES)
    assert "on val" in capsys.readouterr().out


def test_checkpoints_and_results_go_where_the_environment_says(inside, tmp_path, monkeypatch):
    monkeypatch.setenv("NUCLASS_RESULTS_ROOT", str(tmp_path / "r"))
    monkeypatch.setenv("NUCLASS_CHECKPOINT_ROOT", str(tmp_path / "c"))
    assert main(["train", "local", "--configfile", "mine.yaml", "-o", "max_epochs=1"]) == 0
    assert (tmp_path / "c" / "local" / "best.ckpt").is_file()
    assert {path.name for path in (tmp_path / "r" / "splits").iterdir()} == {
        f"{slide}{end}" for slide in SLIDES for end in (".parquet", ".json", ".png")
    }
    split = pd.read_parquet(tmp_path / "r" / "splits" / "Lung_wsi.parquet")
    assert set(split["split"]) == {"train", "val", "buffer"}


def test_a_changed_data_set_is_taken_in_anew(inside, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUCLASS_RESULTS_ROOT", str(tmp_path / "r"))
    dry = ["train", "local", "--configfile", "mine.yaml", "--dry-run"]
    assert main(dry) == 0
    assert "taken in from patch files and divided: Lung_wsi, Colon_wsi" in capsys.readouterr().out
    assert main(["train", "local", "--configfile", "mine.yaml", "-o", "max_epochs=1"]) == 0
    capsys.readouterr()
    assert main(dry) == 0
    assert "taken in" not in capsys.readouterr().out
    data = Path(os.environ["NUCLASS_DATA_DIRS"].split(os.pathsep)[1]) / "train" / "annotations.json"
    before = data.stat()
    try:
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 10))
        assert main(dry) == 0
        assert "divided: Colon_wsi\n" in capsys.readouterr().out
    finally:
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_is_missing_is_told_with_the_command_that_makes_it(inside, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUCLASS_CHECKPOINT_ROOT", str(tmp_path))
    assert main(["train", "gate", "--configfile", "mine.yaml"]) == 1
    told = capsys.readouterr().err
    assert "no checkpoint of the local and of the global model" in told
    assert "nuclass train local && nuclass train global" in told
    assert "--local FILE" in told
    monkeypatch.delenv("NUCLASS_DATA_DIRS")
    monkeypatch.setenv("NUCLASS_RESULTS_ROOT", str(tmp_path / "empty"))
    assert main(["train", "local"]) == 1
    told = capsys.readouterr().err
    assert "snakemake --cores 2" in told
    assert "splits/ovary_1.parquet" in told


def test_features_of_other_settings_are_refused(inside, capsys):
    assert main(["train", "global", "--configfile", "mine.yaml", "-o", "pooling=cls"]) == 1
    told = capsys.readouterr().err
    assert "made by other settings" in told
    assert "pooling cls+center" in told
    assert main(["train", "gate", "--configfile", "mine.yaml", "--dry-run"]) == 0, "the gate's are those of its parent"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("context.backbone.input_px=64", "context.backbone.input_px: it was 32, it is 64"),
        ("context.backbone.mean=[0.5,0.5,0.5]", "context.backbone.mean: it was None"),
        ("read_level=1", "context.read_level: it was 2, it is 1"),
        ("context.views=3", "expected:   views 3"),
        ("context.augment.stain_scale=0.4", "'stain_scale', 0.4"),
        ("context.backbone.config.layerscale_value=0.4", "context.backbone.config.layerscale_value: it was 0.5"),
        ("context.pretrain.trainer.max_epochs=5", "context.pretrain.trainer.max_epochs: it was 1, it is 5"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--dry-run"]])
def test_settings_that_kept_features_do_not_have_are_not_ignored(inside, tmp_path, capsys, setting, told, plan):
    command = ["train", "global", "--configfile", "mine.yaml", "--out", str(tmp_path), "-o", setting, *plan]
    assert main(command) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "best.ckpt").exists()


def test_settings_of_the_machine_make_no_other_features(inside, capsys):
    settings = ["context.workers=1", "context.pretrain.trainer.accelerator=auto", "context.batch_size=8"]
    command = ["train", "global", "--configfile", "mine.yaml", "--dry-run"]
    assert main([*command, *(part for text in settings for part in ("-o", text))]) == 0
    assert "first" not in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["NUCLASS_RESULTS_ROOT", "NUCLASS_CHECKPOINT_ROOT"])
def test_a_folder_that_cannot_be_written_to_is_told_before_training(inside, tmp_path, monkeypatch, capsys, variable):
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    monkeypatch.setattr("nuclass.training.train.train_local", lambda *arguments: pytest.fail("it trains"))
    assert main(["train", "local", "--configfile", "mine.yaml"]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'file'} is a file" in told
    assert variable in told


def test_features_of_the_gates_own_are_made_where_the_protocol_wants_them(inside, tmp_path, capsys):
    command = ["train", "gate", "--configfile", "mine.yaml", "-o", "protocol.smaller_gate_context=true"]
    assert main([*command, "--dry-run"]) == 0
    assert "results/features/context_gate/Lung_wsi.h5" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "gate")]) == 0
    data = torch.load(tmp_path / "gate" / "best.ckpt", weights_only=True)
    assert data["protocol"] == {"smaller_gate_context": True}
    gates = [read_key(Path("results/features/context_gate", f"{slide}.h5")) for slide in SLIDES]
    assert gates[0] == gates[1]
    assert gates[0].input_px < read_key(Path("results/features/context/Lung_wsi.h5")).input_px


def test_settings_are_printed_without_any_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUCLASS_DATA_DIRS", raising=False)
    file = REPOSITORY / "config" / "models" / "path_local.yaml"
    assert main(["train", "local", "--config", str(file), "-o", "max_epochs=20", "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["local"]["trainer"]["max_epochs"] == 20
    assert printed["local"]["backbone"]["name"] == "uni2-h"
    assert not list(tmp_path.iterdir())
    assert main(["train", "local", "-o", "max_epoch=20", "--print-config"]) == 1
    assert "Did you mean 'trainer.max_epochs'?" in capsys.readouterr().err


def test_outside_of_a_study_data_sets_start_from_this_folder(home, tmp_path, monkeypatch, capsys):
    dirs = os.environ["NUCLASS_DATA_DIRS"].split(os.pathsep)
    root = Path(dirs[0]).parent
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("NUCLASS_DATA_DIRS", os.pathsep.join(f"{root.name}/{slide}" for slide in SLIDES))
    overlay = tmp_path / "windows.yaml"
    overlay.write_text(yaml.safe_dump({"windows": WINDOWS, "splits": {"buffer_um": 32}}))
    assert main(["train", "local", "--configfile", str(overlay), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "Lung_wsi (lung), Colon_wsi (colon)" in told
    assert "taken in from patch files" in told
    monkeypatch.setenv("NUCLASS_DATA_DIRS", "")
    monkeypatch.setenv("NUCLASS_DATA_ROOT", root.name)
    assert main(["train", "local", "--configfile", str(overlay), "--dry-run"]) == 0
    assert "Colon_wsi (colon), Lung_wsi (lung)" in capsys.readouterr().out


def run(home: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "nuclass.cli", "train", "local", "--configfile", "mine.yaml", *arguments],
        cwd=home,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_run_goes_on_to_the_same_result(inside, tmp_path):
    long = ["-o", "max_epochs=6", "-o", "schedule=constant"]
    killed = run(inside, *long, "--out", str(tmp_path / "a"))
    wait_for(tmp_path / "a" / "work" / "last.ckpt", killed)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "a" / "best.ckpt").exists()
    again = run(inside, *long, "--out", str(tmp_path / "a"))
    told, _ = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert "going on from" in told
    straight = run(inside, *long, "--out", str(tmp_path / "b"))
    straight.communicate(timeout=300)
    assert straight.returncode == 0
    same(tmp_path / "a", tmp_path / "b")


def test_a_run_stopped_by_ctrl_c_says_how_to_go_on(inside, tmp_path):
    stopped = run(inside, "-o", "max_epochs=50", "--out", str(tmp_path / "a"))
    wait_for(tmp_path / "a" / "work" / "last.ckpt", stopped)
    stopped.send_signal(signal.SIGINT)
    told, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, told
    assert f"saved in {tmp_path / 'a' / 'work'}" in told
    assert "goes on from there" in told
    assert "Traceback" not in told
    assert not (tmp_path / "a" / "best.ckpt").exists()


def test_ctrl_c_before_training_is_no_traceback(inside, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nuclass.training.preparing.prepare_slides", stopped)
    assert main(["train", "local", "--configfile", "mine.yaml"]) == 130
    assert capsys.readouterr().err.strip() == "Stopped; the same command goes on from what is there."
