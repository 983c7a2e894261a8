"""The doctor on the study's own files: leftovers of runs, slides, weights; and on the network that brings them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile

from doctor_example import loaded, look, make_case, only
from http_server import Faults, serve
from nuclass.doctor import data, network, study, weights
from nuclass.doctor.case import Case
from nuclass.models.backbones.registry import REGISTRY

MEMBERS = ("cells.parquet", "cell_feature_matrix.h5", "nucleus_boundaries.parquet")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights and tokens of the one who runs the tests must not be found."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NUCLASS_BACKBONES", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nuclass.models.backbones.weights._cached", lambda hub_id, name: None)


def test_settings_and_sheets(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    found = only(study.CHECKS, "settings and sheets", case)
    assert (found.verdict, found.remedy.split(",")[0]) == (
        "fail",
        "run it in the study's folder (a clone of the repository)",
    )
    (case.root / "config").mkdir()
    (case.root / "config/config.yaml").touch()
    found = only(study.CHECKS, "settings and sheets", case)
    assert found.verdict == "pass"
    assert found.found.startswith("'demo' of config/config.yaml: 5 training slides, 3 cohorts; ")


def test_locks_of_snakemake(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    assert only(study.CHECKS, "locks of Snakemake", case).verdict == "pass"
    (case.root / ".snakemake/locks").mkdir(parents=True)
    (case.root / ".snakemake/locks/0.input.lock").touch()
    found = only(study.CHECKS, "locks of Snakemake", case)
    assert (found.verdict, found.remedy) == ("warn", "if no other machine runs it either: snakemake --unlock")
    script = tmp_path / "snakemake"
    script.write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    running = subprocess.Popen([sys.executable, str(script)], cwd=case.root)
    try:
        for _ in range(100):
            found = only(study.CHECKS, "locks of Snakemake", case)
            if found.verdict == "pass":
                break
            time.sleep(0.05)
    finally:
        running.kill()
        running.wait()
    assert (found.verdict, found.found) == ("pass", f"of a run at work here (process {running.pid})")


def test_outputs_of_killed_jobs(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    assert only(study.CHECKS, "half-made outputs", case).verdict == "pass"
    output = "results/" + "long/" * 60 + "a.txt"
    (case.root / output).parent.mkdir(parents=True)
    (case.root / output).touch()
    mark = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [mark[i : i + 200] for i in range(0, len(mark), 200)]
    file = (case.root / ".snakemake/incomplete").joinpath(*("@" + part for part in parts[:-1]), parts[-1])
    file.parent.mkdir(parents=True)
    file.touch()
    (case.root / ".snakemake/incomplete/no_name").touch()
    found = only(study.CHECKS, "half-made outputs", case)
    assert (found.verdict, found.found) == ("warn", f"1 of jobs that were killed: {output}")
    assert found.remedy.startswith("nothing: the next run makes them anew")


def test_running_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path)
    assert only(study.CHECKS, "running state", case).found == "none: nothing was stopped"
    (case.root / "work/models/local").mkdir(parents=True)
    (case.root / "work/models/local/last.ckpt").write_bytes(bytes(2_000_000))
    found = only(study.CHECKS, "running state", case)
    assert (found.verdict, found.found) == (
        "pass",
        "work/models/local 2.0 MB, 2.0 MB in all; what was stopped goes on from there",
    )
    monkeypatch.setattr(study, "MUCH", 1e6)
    found = only(study.CHECKS, "running state", case)
    assert (found.verdict, found.remedy) == ("warn", "once all is made, rm -rf work gives the space back")


def sheet(**values: str) -> pd.DataFrame:
    """A sheet of one slide."""
    slides = loaded(Path("config/config.yaml")).slides
    row = dict.fromkeys(slides.columns, "") | {"organ": "lung", "role": "train", "sheet_role": "train"}
    return pd.DataFrame([row | values], index=pd.Index(["mine"], name="slide"))


def write_local(folder: Path) -> None:
    """Write what the doctor looks at of a local slide: the bundle's names, the H&E's first tiles, the alignment."""
    (folder / "outs").mkdir(parents=True)
    (folder / "outs/experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}), encoding="utf-8")
    for name in MEMBERS:
        (folder / "outs" / name).touch()
    tifffile.imwrite(
        folder / "mine_he_image.ome.tif", np.full((64, 96, 3), 200, np.uint8), tile=(32, 32), photometric="rgb"
    )
    (folder / "mine_he_imagealignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n", encoding="utf-8")


def local_case(folder: Path) -> Case:
    case = make_case(folder, slides=sheet(source="local", path="../run"))
    write_local(folder / "run")
    return case


def test_synthetic_slides(tmp_path: Path) -> None:
    found = only(data.CHECKS, "slides", make_case(tmp_path))
    assert (found.verdict, found.found) == ("pass", "8 of the sheet, written by the workflow itself")


def test_a_local_slide(tmp_path: Path) -> None:
    found = only(data.CHECKS, "slides", local_case(tmp_path))
    assert (found.verdict, found.name) == ("pass", "mine")
    assert "H&E 96 x 64 px, 1 levels, by tifffile" in found.found


def test_a_bundle_without_a_table(tmp_path: Path) -> None:
    case = local_case(tmp_path)
    (tmp_path / "run/outs/cells.parquet").unlink()
    found = only(data.CHECKS, "slides", case)
    assert found.verdict == "fail"
    assert "no cells.parquet or cells.csv.gz or cells.csv" in found.found
    assert found.remedy == "copy the file from the instrument's or xeniumranger's output"


def test_an_h_and_e_that_is_a_web_page(tmp_path: Path) -> None:
    case = local_case(tmp_path)
    (tmp_path / "run/mine_he_image.ome.tif").write_text("<!DOCTYPE html><html>", encoding="utf-8")
    found = only(data.CHECKS, "slides", case)
    assert (found.verdict, found.remedy) == (
        "fail",
        "fetch the file again from its address; the server answered with a page",
    )


def test_an_alignment_that_is_none(tmp_path: Path) -> None:
    case = local_case(tmp_path)
    alignment = tmp_path / "run/mine_he_imagealignment.csv"
    alignment.write_text("a,b\n", encoding="utf-8")
    assert only(data.CHECKS, "slides", case).verdict == "fail"
    alignment.unlink()
    found = only(data.CHECKS, "slides", case)
    assert (found.verdict, found.remedy) == (
        "fail",
        "fill the column 'alignment' of the slide sheet, or set its 'align' to register",
    )
    registered = make_case(tmp_path, slides=sheet(source="local", path="../run", align="register"))
    (tmp_path / "run/outs/morphology_focus.ome.tif").touch()
    assert only(data.CHECKS, "slides", registered).verdict == "pass"


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    found = only(data.CHECKS, "slides", make_case(tmp_path, slides=sheet(source="local", path="/nowhere")))
    assert found.verdict == "fail"
    assert found.remedy == "correct the path, in the slide sheet the column 'path'"


def test_patch_files(tmp_path: Path) -> None:
    case = make_case(tmp_path, slides=sheet(source="patches", path="../patches"))
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "annotations.json").write_text("{}", encoding="utf-8")
    for side in (224, 1024):
        with h5py.File(folder / f"patches_{side}x{side}.h5", "w") as file:
            file["a"] = [1]
    assert only(data.CHECKS, "slides", case).verdict == "pass"
    (folder / "patches_1024x1024.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    found = only(data.CHECKS, "slides", case)
    assert (found.verdict, found.remedy) == ("fail", "copy or make the file again")


def test_public_slides_are_still_to_come(tmp_path: Path) -> None:
    case = make_case(tmp_path, paper=True)
    shutil.copytree(Path(__file__).parent.parent / "resources", case.root / "resources", ignore=lambda *_: {"bundles"})
    found = only(data.CHECKS, "slides", case)
    assert (found.verdict, found.name) == ("pass", "public slides")
    assert "ovary_1, pancreas_1" in found.found
    assert "downloaded when the study runs, about " in found.found
    config = {**case.study.config, "fetch": {**case.study.config["fetch"], "offline": True}}
    case.study.config.update(config)
    try:
        findings = look(data.CHECKS, "slides", case)
    finally:
        config["fetch"]["offline"] = False
    assert {one.verdict for one in findings} == {"fail"}
    assert len(findings) == 11
    assert findings[0].remedy.endswith("or set fetch.offline to false")


def safetensors(file: Path, parameters: int, missing: int = 0) -> None:
    """Write a file of the right length without tensors; what is missing of it is cut off."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [parameters], "data_offsets": [0, 4 * parameters]}})
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header.encode())
        stream.truncate(8 + len(header) + 4 * parameters - missing)


def named(results: list[Any], name: str) -> Any:
    return next(one for one in results if one.name == name)


def weights_of(case: Case, name: str) -> Any:
    return named(look(weights.CHECKS, "weight files", case), name)


def test_a_study_without_weights(tmp_path: Path) -> None:
    assert only(weights.CHECKS, "weight files", make_case(tmp_path)).verdict == "pass"
    assert only(weights.CHECKS, "gated licences", make_case(tmp_path)).verdict == "skip"


def test_weights_that_are_whole(tmp_path: Path) -> None:
    case = make_case(tmp_path, paper=True)
    spec = REGISTRY["uni2-h"]
    safetensors(case.root / "backbones" / spec.hub_id / "model.safetensors", spec.parameters)
    found = weights_of(case, "uni2-h")
    assert found.verdict == "pass"
    assert "for local, global, baseline uni2_h: " in found.found
    assert found.found.endswith("1 tensors, 681,394,176 parameters")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda file: safetensors(file, 87_849_216, missing=10), "a weight file is cut off"),
        (lambda file: safetensors(file, 1000), "holds 1,000 parameters, the network has 87,849,216"),
        (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "only a pointer of Git LFS"),
        (lambda file: file.write_bytes(b"<!DOCTYPE html><html></html>"), "is no safetensors file"),
        (lambda file: file.write_bytes(struct.pack("<Q", 4) + b"{}{}"), "the header of a weight file cannot be read"),
    ],
)
def test_weights_that_are_broken(tmp_path: Path, make: Any, found: str) -> None:
    case = make_case(tmp_path, paper=True)
    file = case.root / "backbones/vinid/plip/model.safetensors"
    file.parent.mkdir(parents=True)
    make(file)
    told = weights_of(case, "plip")
    assert told.verdict == "fail"
    assert found in told.found
    assert told.remedy == f"mv {file} {file}.broken && nuclass backbones fetch plip"


def hash_of(case: Case) -> Any:
    (found,) = look(weights.CHECKS, "sha256", case)
    return found


def test_weights_are_what_the_hub_sent(tmp_path: Path) -> None:
    """``huggingface_hub`` leaves the hash beside what it downloads; none of the doctor's own is needed."""
    case = make_case(tmp_path, paper=True)
    assert (hash_of(case).verdict, hash_of(case).found) == ("skip", "no weights of the hub are here")
    folder = case.root / "backbones/vinid/plip"
    file, note = folder / "model.safetensors", folder / ".cache/huggingface/download/model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert hash_of(case).found == (
        "compared whenever a network is loaded; nuclass doctor --hashes does it now (7 bytes to read)"
    )
    case = make_case(tmp_path, paper=True, hashes=True)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert (hash_of(case).verdict, hash_of(case).found) == ("skip", f"{file}: sha256 {sha256}; none on record")
    note.write_text(f"0123abc\n{sha256}\n1764.0\n", encoding="utf-8")
    assert (hash_of(case).verdict, hash_of(case).found) == ("pass", f"{file}: sha256 {sha256}, as the hub sent it")
    file.write_bytes(b"weiGhts of a bad disk")
    found = hash_of(case)
    assert (found.verdict, found.name) == ("fail", "plip")
    assert "A weight file is not what the hub sent" in found.found
    assert hashlib.sha256(file.read_bytes()).hexdigest() in found.found
    assert found.remedy.startswith(f"rm {file} && hf download vinid/plip --local-dir {folder}")


def test_gated_weights_that_are_missing(tmp_path: Path) -> None:
    page = "https://huggingface.co/MahmoodLab/UNI2-h"
    found = weights_of(make_case(tmp_path, paper=True), "uni2-h")
    assert found.verdict == "fail"
    assert (
        "not on this machine (about 2.7 GB); gated (CC-BY-NC-ND-4.0), and there is no token of the hub" in found.found
    )
    assert found.remedy == f"accept the licence at {page}, then: hf auth login && nuclass backbones fetch uni2-h"
    found = weights_of(make_case(tmp_path, paper=True, environ={"HF_TOKEN": "x"}), "uni2-h")
    assert (found.verdict, found.remedy) == (
        "warn",
        f"accept the licence at {page}, then: nuclass backbones fetch uni2-h",
    )


def test_free_weights_that_are_missing(tmp_path: Path) -> None:
    found = weights_of(make_case(tmp_path, paper=True), "plip")
    assert (found.verdict, found.remedy) == ("warn", "nuclass backbones fetch plip")
    found = weights_of(make_case(tmp_path, paper=True, offline=True), "plip")
    assert found.verdict == "fail"
    assert found.remedy == "on a machine with a network: nuclass backbones fetch plip   and copy backbones/ here"


def test_weights_of_ones_own(tmp_path: Path) -> None:
    net = {"name": "timm:resnet10t", "input_px": 96, "weights": "mine.safetensors"}
    case = make_case(tmp_path, models={"local": {"backbone": net}})
    found = weights_of(case, "timm:resnet10t")
    assert (found.verdict, found.remedy) == ("fail", "correct weights or path of the backbone in the models' file")
    safetensors(case.root / "mine.safetensors", 10)
    assert weights_of(case, "timm:resnet10t").verdict == "pass"


def test_licences(tmp_path: Path) -> None:
    found = only(weights.CHECKS, "gated licences", make_case(tmp_path, paper=True))
    assert found.verdict == "warn"
    assert "https://huggingface.co/facebook/dinov3-vitl16-pretrain-lvd1689m\n" in found.remedy
    assert found.remedy.endswith("\nthen: hf auth login   (or set HF_TOKEN)")
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/token").write_text("hf_x\n", encoding="utf-8")
    found = only(weights.CHECKS, "gated licences", make_case(tmp_path, paper=True))
    assert found.verdict == "pass"
    assert f"a token lies in {tmp_path}/.cache/huggingface/token" in found.found


def test_the_hub_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(weights.CHECKS, "hub", make_case(tmp_path, paper=True)).verdict == "pass"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(weights.CHECKS, "hub", make_case(tmp_path)).verdict == "pass"
    found = only(weights.CHECKS, "hub", make_case(tmp_path, paper=True))
    assert found.verdict == "fail"
    assert found.remedy == "unset HF_HUB_OFFLINE, or bring the files by hand"


def test_nothing_to_fetch(tmp_path: Path) -> None:
    assert only(network.CHECKS, "servers", make_case(tmp_path)).verdict == "skip"


def reach(case: Case, url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(network, "addresses", lambda case: {"server": url})
    return only(network.CHECKS, "servers", case)


def test_a_server_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/a.csv").write_bytes(b"1,0,0\n")
    (tmp_path / "www/closed.csv").write_bytes(b"1,0,0\n")
    case = make_case(tmp_path)
    with serve(tmp_path / "www") as server:
        server.faults["closed.csv"] = Faults(status=403)
        assert reach(case, server.url("a.csv"), monkeypatch).verdict == "pass"
        assert reach(case, server.url("none.csv"), monkeypatch).verdict == "warn"
        found = reach(case, server.url("closed.csv"), monkeypatch)
        assert found.verdict == "warn"
        assert "fetch.user_agent" in found.remedy
    assert reach(make_case(tmp_path, offline=True), "http://127.0.0.1:9/", monkeypatch).verdict == "skip"


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reach(make_case(tmp_path), "http://127.0.0.1:9/a.csv", monkeypatch)
    assert found.verdict == "fail"
    assert "Connection refused" in found.found
    paper = make_case(tmp_path, paper=True, environ={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (
        " snakemake --cores 4 --configfile config/paper.yaml -- bundles "
        in network._no_answer(paper, "10x.example", "").remedy
    )
    assert "nuclass backbones fetch NAME" in network._no_answer(paper, "127.0.0.1:9", "").remedy
    assert found.remedy == (
        "on a machine with a network, such as a login node: snakemake --cores 4 -- bundles   or set https_proxy"
    )


def test_a_server_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(network, "LIMIT_S", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        start = time.monotonic()
        found = reach(make_case(tmp_path), f"http://127.0.0.1:{listening.getsockname()[1]}/a", monkeypatch)
    assert time.monotonic() - start < 5
    assert found.verdict == "fail"
    assert found.found.startswith("no answer: ")


def test_which_servers_are_asked(tmp_path: Path) -> None:
    case = make_case(tmp_path, paper=True)
    shutil.copytree(Path(__file__).parent.parent / "resources", case.root / "resources", ignore=lambda *_: {"bundles"})
    assert {"cf.10xgenomics.com", "huggingface.co"} <= set(network.addresses(case))


def test_proxy(tmp_path: Path) -> None:
    assert only(network.CHECKS, "proxy", make_case(tmp_path)).verdict == "pass"
    case = make_case(tmp_path, environ={"HTTPS_PROXY": "http://me:secret@proxy.org:3128"})
    found = only(network.CHECKS, "proxy", case)
    assert (found.verdict, found.found) == ("pass", "https_proxy proxy.org:3128")
    # Without http:// before it, which Python's own requests understand as well.
    for value in ("proxy.uni.edu:3128", "proxy"):
        assert only(network.CHECKS, "proxy", make_case(tmp_path, environ={"https_proxy": value})).verdict == "pass"
    assert only(network.CHECKS, "proxy", make_case(tmp_path, environ={"https_proxy": "http://[::1"})).verdict == "fail"
    found = only(network.CHECKS, "proxy", make_case(tmp_path, environ={"https_proxy": "http://:3128"}))
    assert (found.verdict, found.remedy) == ("fail", "export https_proxy=http://HOST:PORT")


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").touch()
    given = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    assert only(network.CHECKS, "certificates", make_case(tmp_path, environ=given)).verdict == "pass"
    found = only(network.CHECKS, "certificates", make_case(tmp_path, environ={"SSL_CERT_FILE": "/nowhere.pem"}))
    assert (found.verdict, found.remedy) == ("fail", "unset SSL_CERT_FILE, or name your institute's certificates")
    nowhere = ssl.DefaultVerifyPaths(None, None, "", os.devnull, "", os.devnull)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    found = only(network.CHECKS, "certificates", make_case(tmp_path))
    assert (found.verdict, found.remedy) == (
        "fail",
        "install ca-certificates, or: export SSL_CERT_FILE=$(python -m certifi)",
    )
