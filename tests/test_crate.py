"""The record of a run as RO-Crate: by hand, and by the validator of the profile where it is installed."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nuclass.core.crate import METADATA, run_crate
from nuclass.core.files import write_json
from nuclass.core.provenance import copy_workflow, run_record, seeds_of

ROOT = Path(__file__).parents[1]
TOLD = {"config.yaml": "settings", "slides.tsv": "slides"}
# The validator asks the network for both contexts; these are the terms that our crates use, as they stand there.
SCHEMA = """
about additionalType contentSize CreateAction CreativeWork ComputerLanguage Dataset dateModified datePublished
description encodingFormat endTime exampleOfWork hasPart identifier instrument license mainEntity mentions name object
programmingLanguage PropertyValue result SoftwareApplication softwareRequirements SoftwareSourceCode softwareVersion url
value version workExample""".split()
TERMS = {
    **{term: f"http://schema.org/{term}" for term in SCHEMA},
    "File": "http://schema.org/MediaObject",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
}


@pytest.fixture
def crate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the record of a run that read a bundle and patch files, and made one table."""
    monkeypatch.chdir(ROOT)
    for name in TOLD:
        (tmp_path / name).write_text("a", encoding="utf-8")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "t.csv").write_bytes(b"x,y\n")
    bundle = {"source": "local", "files": {"outs/cells.parquet": {"sha256": "ab" * 32, "bytes": 3}}}
    write_json(tmp_path / "bundle.json", bundle)
    parts = [
        {
            "folder": f"/data/a/{split}",
            "annotations": {"path": f"/data/a/{split}/annotations.json", "size": size + 1, "mtime_ns": 10**18},
            "files": {"local": {"path": f"/data/a/{split}/patches_224x224.h5", "size": size, "mtime_ns": 10**18}},
        }
        for split, size in (("train", 12), ("test", 7))
    ]
    write_json(tmp_path / "patches.json", {"mpp": 1, "windows": {}, "parts": parts})
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "slides.tsv").write_bytes(b"another")
    write_checkpoint(tmp_path / "made" / "m.ckpt", {"format": 2, "versions": {"nuclass": "0.1", "torch": "9.8+cu1"}})
    record = run_record(
        {"study": "mine", "evaluation": {"seed": 7}, "seeds": 3},
        [tmp_path / "slides.tsv", tmp_path / "more" / "slides.tsv", Path("pyproject.toml")],
        {"b": tmp_path / "bundle.json"},
        tmp_path,
        {"p": tmp_path / "patches.json"},
        [tmp_path / "made" / "t.csv"],
        [tmp_path / "made" / "m.ckpt"],
    )
    write_json(tmp_path / "run.json", record)
    workflow = copy_workflow(ROOT, tmp_path / "code")
    write_json(tmp_path / METADATA, run_crate(record, workflow=workflow, settings=TOLD, made={"run.json": "record"}))
    return tmp_path


def write_checkpoint(path: Path, data: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(data, protocol=2))


def entities(folder: Path) -> dict[str, dict[str, Any]]:
    graph = json.loads((folder / METADATA).read_text(encoding="utf-8"))["@graph"]
    assert len({entity["@id"] for entity in graph}) == len(graph), "an @id stands twice"
    return {entity["@id"]: entity for entity in graph}


def references(entity: dict[str, Any]) -> Iterator[str]:
    for value in entity.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield part["@id"]


def test_every_reference_leads_somewhere(crate: Path) -> None:
    known = entities(crate)
    outside = {"https://w3id.org/ro/crate/1.1", "https://snakemake.github.io"}
    for entity in known.values():
        assert set(references(entity)) <= set(known) | outside, entity["@id"]
    for part in known["./"]["hasPart"]:
        assert (crate / part["@id"]).is_file()
    parts = {part["@id"] for part in known["./"]["hasPart"]}
    assert parts == {path.relative_to(crate).as_posix() for path in (crate / "code").rglob("*") if path.is_file()} | {
        "run.json",
        *TOLD,
    }


def test_inputs_outputs_seeds_and_code_are_those_of_the_run(crate: Path) -> None:
    known = entities(crate)
    assert known["#t.csv"]["sha256"] == hashlib.sha256(b"x,y\n").hexdigest()
    assert known["#t.csv"]["contentSize"] == "4"
    assert known["#bundles/b/outs/cells.parquet"]["sha256"] == "ab" * 32
    assert known["#bundles/b/outs/cells.parquet"]["contentSize"] == "3"
    assert known["#pyproject.toml"]["contentSize"] == str((ROOT / "pyproject.toml").stat().st_size)
    assert known["#seed-evaluation.seed"]["value"] == 7
    run = known["#run"]
    assert {"@id": "#t.csv"} in run["result"]
    for name in (
        "#bundles/b/outs/cells.parquet",
        "#pyproject.toml",
        "#slides.tsv",
        "#2/slides.tsv",
        "#patches/p/train/patches_224x224.h5",
        "#patches/p/test/patches_224x224.h5",
        "#patches/p/test/annotations.json",
        "#seed-evaluation.seed",
        "config.yaml",
    ):
        assert {"@id": name} in run["object"]
    main = known["code/workflow/Snakefile"]
    assert run["instrument"] == {"@id": main["@id"]}
    assert known["#package-numpy"]["softwareVersion"] == __import__("numpy").__version__
    assert (crate / main["@id"]).read_bytes() == (ROOT / "workflow" / "Snakefile").read_bytes()


def test_patch_files_of_train_and_test_stay_apart(crate: Path) -> None:
    known = entities(crate)
    sizes = {name: entity["contentSize"] for name, entity in known.items() if name.startswith("#patches/")}
    assert sizes == {
        "#patches/p/train/patches_224x224.h5": "12",
        "#patches/p/train/annotations.json": "13",
        "#patches/p/test/patches_224x224.h5": "7",
        "#patches/p/test/annotations.json": "8",
    }
    assert known["#patches/p/test/annotations.json"]["dateModified"] == "2001-09-09T01:46:40+00:00"


def test_it_names_no_folder_of_the_machine(crate: Path) -> None:
    text = (crate / METADATA).read_text(encoding="utf-8")
    assert str(crate) not in text
    assert "/data/a" not in text
    another = hashlib.sha256(b"another").hexdigest()
    assert entities(crate)["#2/slides.tsv"]["sha256"] == another


def test_what_trained_stands_beside_what_recorded(crate: Path) -> None:
    trained = entities(crate)["#training-torch-9.8%2Bcu1"]
    assert (trained["name"], trained["softwareVersion"]) == ("torch", "9.8+cu1")
    assert {"@id": trained["@id"]} in entities(crate)["code/workflow/Snakefile"]["softwareRequirements"]


def test_seeds_are_found_at_any_depth() -> None:
    assert seeds_of({"seed": 1, "a": {"b": {"seed": 2}, "seeds": 3}, "c": {"seed": "x"}}) == {"seed": 1, "a.b.seed": 2}


def test_all_terms_are_those_of_the_contexts(crate: Path) -> None:
    for entity in entities(crate).values():
        kinds = entity["@type"] if isinstance(entity["@type"], list) else [entity["@type"]]
        assert {*entity, *kinds} - {"@id", "@type"} <= set(TERMS), entity["@id"]


@pytest.mark.parametrize("profile", ["process-run-crate-0.5", "workflow-run-crate-0.5"])
def test_its_validator_finds_nothing_to_mend(crate: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(crate, profile, monkeypatch) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda known: known["./"].pop("license"), "license"),
        (lambda known: known["#run"].pop("instrument"), "instrument"),
        (lambda known: known["#parameter-config.yaml"].pop("additionalType"), "additionalType"),
    ],
)
def test_its_validator_would_tell(crate: Path, change: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((crate / METADATA).read_text(encoding="utf-8"))
    change({entity["@id"]: entity for entity in content["@graph"]})
    write_json(crate / METADATA, content)
    assert any(told in message for message in failures(crate, "workflow-run-crate-0.5", monkeypatch))


def failures(crate: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what the validator of RO-Crate and its profiles (roc-validator) has to say of a folder."""
    reason = "roc-validator is not installed: it needs rich below 14; see docs/outputs.md"
    services = pytest.importorskip("rocrate_validator.services", reason=reason)
    http, requests = pytest.importorskip("rocrate_validator.utils.http"), pytest.importorskip("requests")
    contexts = json.loads((crate / METADATA).read_text(encoding="utf-8"))["@context"]

    def served(self: Any, url: str, **options: Any) -> Any:
        assert url in contexts
        answer = requests.Response()
        answer.status_code, answer.headers["Content-Type"] = 200, "application/ld+json"
        answer._content = json.dumps({"@context": TERMS}).encode()
        return answer

    monkeypatch.setattr(http.HttpRequester, "get", served, raising=False)
    options = {"rocrate_uri": str(crate), "profile_identifier": profile, "no_cache": True}
    settings = services.ValidationSettings.parse(options | {"skip_availability_check": True})
    return [str(issue.message) for issue in services.validate(settings).get_issues()]
