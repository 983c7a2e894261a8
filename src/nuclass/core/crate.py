"""The record of a run as RO-Crate: JSON-LD after the profile Workflow Run Crate 0.5 of RO-Crate 1.1.

The profile: https://w3id.org/ro/wfrun/workflow/0.5. Files of the crate's folder are its data entities. What the run
read and made elsewhere is named behind a ``#`` by its place in the study, or in its slide's folder, with what is known
of size, SHA-256 and time; so this file names no folder of a machine. The run's own record and settings beside it do.
"""

from __future__ import annotations

import datetime
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nuclass.core.provenance import places

METADATA = "ro-crate-metadata.json"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
SNAKEMAKE = "https://w3id.org/workflowhub/workflow-ro-crate#snakemake"
LICENCE = "https://spdx.org/licenses/BSD-3-Clause"
_TYPES = {".smk": "text/x-python", ".yaml": "application/yaml", ".tsv": "text/tab-separated-values"}
Entity = dict[str, Any]


def run_crate(
    record: Mapping[str, Any], *, workflow: Sequence[str], settings: Mapping[str, str], made: Mapping[str, str]
) -> Entity:
    """Return the content of ``ro-crate-metadata.json``.

    Parameters
    ----------
    record
        What :func:`nuclass.core.provenance.run_record` returns.
    workflow
        Files of the workflow in the crate's folder, by their paths from there; the first is the main one.
    settings
        Files of the crate's folder that tell what the run was given: path to what it is.
    made
        Files of the crate's folder that the run wrote about itself, likewise.
    """
    parameters, seeds = [*_parameters(record, settings)], [*_seeds(record.get("seeds", {}))]
    shown = places([*record["inputs"], *record.get("outputs", {})])
    inputs = [*_hashed({shown[path]: facts for path, facts in record["inputs"].items()}), *_slides(record)]
    outputs = [*_hashed({shown[path]: facts for path, facts in record.get("outputs", {}).items()})]
    files = [_file(path, text, exampleOfWork=_ref(f"#parameter-{path}")) for path, text in settings.items()]
    about = [_file(path, text) for path, text in made.items()]
    software = [*_software(record["packages"]), *_trained_with(record.get("checkpoints", {}))]
    main, *rules = _workflow(record, workflow)
    main |= {"input": _refs(parameters), "softwareRequirements": _refs(software)}
    action = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"Run of the study {record['study']}",
        "description": _told(record),
        "endTime": record["made"],
        "instrument": _ref(main["@id"]),
        "object": _refs([*files, *seeds, *inputs]),
        "result": _refs([*about, *outputs]),
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"NuClass study {record['study']}: record of a run",
        "description": "What a study of cell types in H&E images was made from, and what it made.",
        "datePublished": record["made"],
        "license": "Of the workflow: BSD-3-Clause. Of the study's data: as their owners say.",
        "conformsTo": [_ref(profile) for profile in PROFILES],
        "mainEntity": _ref(main["@id"]),
        "mentions": [_ref("#run")],
        "hasPart": _refs([main, *rules, *files, *about]),
    }
    known = [_descriptor(), root, main, *rules, *files, *about, action, *parameters, *seeds]
    return {"@context": CONTEXT, "@graph": [*known, *inputs, *outputs, *software, *_fixed(record)]}


def _descriptor() -> Entity:
    versions = ["https://w3id.org/ro/crate/1.1", list(PROFILES)[-1]]
    return {"@id": METADATA, "@type": "CreativeWork", "about": _ref("./"), "conformsTo": [*map(_ref, versions)]}


def _workflow(record: Mapping[str, Any], paths: Sequence[str]) -> list[Entity]:
    """Return the files of the workflow, the main one first."""
    version, commit = _version(record["code"]), record["code"]["commit"]
    rules = [_file(path, "rules of the workflow", version=version) for path in paths[1:]]
    for entity in rules:
        entity["@type"] = ["File", "SoftwareSourceCode"]
    main = _file(paths[0], f"the workflow, version {version}", version=version)
    main |= {
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
        "name": "NuClass Workflow",
        "license": _ref(LICENCE),
        "programmingLanguage": _ref(SNAKEMAKE),
        "hasPart": _refs(rules),
        **({"identifier": commit} if commit else {}),
    }
    return [main, *rules]


def _refs(entities: Iterable[Entity]) -> list[Entity]:
    return [_ref(entity["@id"]) for entity in entities]


def _ref(name: str) -> Entity:
    return {"@id": name}


def _version(code: Mapping[str, Any]) -> str:
    if not code["commit"]:
        return str(code["nuclass"])
    return f"{code['nuclass']}+{code['commit'][:12]}{'.changed' if code['dirty'] else ''}"


def _told(record: Mapping[str, Any]) -> str:
    """Return protocol, state of the code and machine in words."""
    code, machine = record["code"], record["machine"]
    state = {True: "with changes that are not committed", False: "without changes", None: "of unknown state"}
    commit = f"commit {code['commit']}, {state[code['dirty']]}" if code["commit"] else "no commit known"
    where = f"Python {machine['python']}, {machine['system']}, {machine['processor']}, {machine['cores']} cores"
    return f"Protocol: {record['protocol']}. Code: {commit}. Machine: {where}."


def _file(path: str, what: str, **more: Any) -> Entity:
    return {"@id": path, "@type": "File", "name": path, "description": what, "encodingFormat": _encoding(path), **more}


def _encoding(path: str) -> str:
    if Path(path).name == "Snakefile":
        return "text/x-python"
    return _TYPES.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"


def _hashed(files: Mapping[str, Mapping[str, Any]]) -> Iterable[Entity]:
    """Yield an entity for each file outside the crate: place to ``sha256 bytes mtime_ns``, each as far as known."""
    for path, facts in files.items():
        entity = {"@id": f"#{quote(path)}", "@type": "File", "name": path, "encodingFormat": _encoding(path)}
        if facts.get("sha256"):
            entity["sha256"] = facts["sha256"]
        if facts.get("bytes") is not None:
            entity["contentSize"] = str(facts["bytes"])
        if facts.get("mtime_ns") is not None:
            changed = datetime.datetime.fromtimestamp(facts["mtime_ns"] // 10**9, datetime.UTC)
            entity["dateModified"] = changed.isoformat()
        yield entity


def _slides(record: Mapping[str, Any]) -> Iterable[Entity]:
    """Yield the files of every slide."""
    for kind in ("bundles", "patches"):
        for slide, found in record[kind].items():
            yield from _hashed({f"{kind}/{slide}/{place}": facts for place, facts in found["files"].items()})


def _parameters(record: Mapping[str, Any], settings: Mapping[str, str]) -> Iterable[Entity]:
    for path in settings:
        yield _parameter(path, "File", path)
    for name in record.get("seeds", {}):
        yield _parameter(name, "Integer", f"#seed-{name}")


def _parameter(name: str, kind: str, example: str) -> Entity:
    return {"@id": f"#parameter-{name}", "@type": "FormalParameter", "name": name, "additionalType": kind,
            "workExample": _ref(example)}  # fmt: skip


def _seeds(seeds: Mapping[str, int]) -> Iterable[Entity]:
    for name, value in seeds.items():
        yield {"@id": f"#seed-{name}", "@type": "PropertyValue", "name": name, "value": value,
               "exampleOfWork": _ref(f"#parameter-{name}")}  # fmt: skip


def _software(packages: Mapping[str, str | None]) -> Iterable[Entity]:
    for name, version in packages.items():
        if version:
            yield {"@id": f"#package-{name}", "@type": "SoftwareApplication", "name": name, "softwareVersion": version,
                   "description": "in the environment that wrote this record"}  # fmt: skip


def _trained_with(checkpoints: Mapping[str, Mapping[str, str]]) -> Iterable[Entity]:
    """Yield what the checkpoints say that they were written with, each version once."""
    for name, version in dict.fromkeys(pair for versions in checkpoints.values() for pair in versions.items()):
        yield {"@id": f"#training-{name}-{quote(version)}", "@type": "SoftwareApplication", "name": name,
               "softwareVersion": version, "description": "what checkpoints were written with"}  # fmt: skip


def _fixed(record: Mapping[str, Any]) -> Iterable[Entity]:
    """Yield the entities that every crate of this kind has."""
    for profile, name in PROFILES.items():
        yield {"@id": profile, "@type": "CreativeWork", "name": name, "version": profile.rsplit("/", 1)[1]}
    yield {"@id": SNAKEMAKE, "@type": "ComputerLanguage", "name": "Snakemake", "url": _ref("https://snakemake.github.io"),
           "identifier": _ref("https://snakemake.github.io"),
           "version": record["packages"].get("snakemake") or "unknown"}  # fmt: skip
    yield {"@id": LICENCE, "@type": "CreativeWork", "name": "BSD 3-Clause License", "url": _ref(LICENCE)}
