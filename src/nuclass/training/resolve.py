"""The settings of one training, from a file, the study's model file and the command line; and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.models_file import models_locator, read_models_file
from nuclass.core.protocol import STAGES, SWITCHES, Protocol, parse_protocol, switches_of
from nuclass.core.schema import read_yaml
from nuclass.training.config import Models, parse_models, to_plain
from nuclass.training.overrides import PART_OF, PROTOCOL, USES, Keys, apply_overrides
from nuclass.training.parsing import section_of, section_types

_log = get_logger(__name__)
STAGES_OF = {"local": ("local",), "global": ("global", "context", "views"), "gate": ("gate", "gate_context")}
"""Model -> the stages of the protocol that its command carries out."""


@dataclass(frozen=True)
class Settings:
    """The settings of one training.

    Attributes
    ----------
    model
        ``local``, ``global`` or ``gate``.
    typed
        All sections, checked.
    origin
        Path of a key -> where its value came from: a file with its line, the command line; ``default`` otherwise.
    """

    model: str
    typed: Models
    origin: Callable[[Keys], str]

    def sections(self, *stages: str) -> dict[str, Any]:
        """Return what the functions of training take: the sections, complete, and the switches that are on.

        ``stages`` are those of the protocol whose switches count; by default the model's own.
        """
        whole = to_plain(self.typed)
        names = ("context", "local", "global", "gate", "predict")
        switches = switches_of(self.typed.protocol, *(stages or (self.model,)))
        return {name: whole[name] for name in names} | {PROTOCOL: switches}

    def render(self) -> str:
        """Return the sections that the training reads as YAML, each value with where it came from."""
        whole = to_plain(self.typed)
        lines = [
            f"# Settings of the training of the {self.model} model. nuclass train {self.model} --config reads them."
        ]
        for name in reversed(USES[self.model]):
            only = PART_OF.get((self.model, name))
            part = {only: whole[name][only]} if only else whole[name]
            lines += ["", *_render(part, (name,), self.origin)]
        return "\n".join(lines) + "\n"


def resolve(
    model: str,
    study_file: Path,
    *,
    protocol: Protocol | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Return the settings of one training.

    Parameters
    ----------
    model
        ``local``, ``global`` or ``gate``.
    study_file
        The model file of the study; gives the sections that ``file`` does not.
    protocol
        The switches of the study; those of ``file``, where it has the section, go before them.
    file
        A section of the model in a file of its own, such as ``config/models/path_local.yaml``, or a whole model file.
        Where the study's model file does not name that section file but just one beside it does, the other sections
        come from that one: ``path_global.yaml`` belongs to ``paper.yaml``.
    overrides
        ``key=value`` each, see :mod:`nuclass.training.overrides`.

    Raises
    ------
    UserError
        With all faults in one message, each with file and line.
    """
    data, locate = _read(model, study_file, file)
    own_protocol = PROTOCOL in data
    if own_protocol:
        data[PROTOCOL] = to_plain(parse_protocol(data[PROTOCOL], where=locate((PROTOCOL,))))
    else:
        data[PROTOCOL] = to_plain(protocol or Protocol())
    changed, typed_in = apply_overrides(data, overrides, model)

    def place(path: Sequence[str | int]) -> str:
        ends = (tuple(map(str, path[:end])) for end in range(len(path), 0, -1))
        return next((typed_in[end] for end in ends if end in typed_in), "") or locate(path)

    def origin(path: Keys) -> str:
        if path[0] == PROTOCOL and not own_protocol and path not in typed_in:
            return "protocol of the configuration"
        return place(path) if _has(changed, path) else "default"

    typed = parse_models(changed, where=str(file or study_file), locate=place)
    _tell_switches(typed.protocol, protocol or Protocol(), model)
    return Settings(model, typed, origin)


def _read(model: str, study_file: Path, file: Path | None) -> tuple[dict[str, Any], Callable[..., str]]:
    """Return the sections of all models, and what tells file and line of a key."""
    if file is None:
        data, files = read_models_file(study_file)
        return data, models_locator(study_file, files)
    given = read_yaml(file)
    if isinstance(given, dict) and set(given) & set(section_types(Models)):
        data, files = read_models_file(file)
        base, base_files = read_models_file(study_file)
        own, other = models_locator(file, files), models_locator(study_file, base_files)
        base.pop(PROTOCOL, None)
        return base | data, lambda path: own(path) if path and path[0] in data else other(path)
    if given is not None and not isinstance(given, dict):
        raise UserError("The settings are not a section of keys", where=file, found=repr(given)[:80])
    _check_section(model, given or {}, file)
    base_file = _companion(model, study_file, file)
    base, base_files = read_models_file(base_file)
    base.pop(PROTOCOL, None)
    own = models_locator(base_file, {**base_files, model: file})
    return base | {model: given or {}}, own


def _check_section(model: str, data: dict[str, Any], file: Path) -> None:
    """Raise when a section file is that of another model."""
    kinds = {name: kind for name, hint in section_types(Models).items() if (kind := section_of(hint)) is not None}
    strange = {name: len(set(data) - set(section_types(kind))) for name, kind in kinds.items()}
    fitting = [name for name in kinds if name != PROTOCOL and not strange[name]]
    if strange[model] and len(fitting) == 1:
        raise UserError(
            f"The settings are those of another section: {fitting[0]}",
            where=file,
            found=", ".join(map(str, data)),
            expected=f"the section {model}, or a whole model file",
            fix=f"run: nuclass train {fitting[0]} --config {file}" if fitting[0] in USES else "name another file",
        )


def _companion(model: str, study_file: Path, file: Path) -> Path:
    """Return the model file that names a section file: the study's, or the only one beside it; else the study's."""
    beside = [path for path in sorted(file.parent.glob("*.yaml")) if path.resolve() != file.resolve()]
    naming = [path for path in [study_file, *beside] if _names(path, model, file)]
    if not naming or naming[0] == study_file or len({path.resolve() for path in naming}) > 1:
        return study_file
    _log.info("%s names %s: settings of other sections come from there", naming[0], file.name)
    return naming[0]


def _names(path: Path, model: str, file: Path) -> bool:
    data = read_yaml(path)
    named = data.get(model) if isinstance(data, dict) else None
    return isinstance(named, str) and (path.parent / named).resolve() == file.resolve()


def _tell_switches(protocol: Protocol, of_study: Protocol, model: str) -> None:
    """Warn of switches that the study has off and whose effect lies in other stages than this training."""
    own = {name for stage in STAGES_OF[model] for name in STAGES[stage]}
    others = {name for names in STAGES.values() for name in names} - own
    idle = [name for name in SWITCHES if name in others and getattr(protocol, name) and not getattr(of_study, name)]
    if idle:
        _log.warning(
            "No effect on the training of the %s model have the switches %s of the protocol. Those of slides and "
            "splits stand in the configuration.",
            model, ", ".join(idle),
        )  # fmt: skip


def _has(data: Any, path: Keys) -> bool:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def _render(value: Any, path: Keys, origin: Callable[[Keys], str]) -> list[str]:
    indent = "  " * (len(path) - 1)
    if isinstance(value, dict) and value:
        lines = [f"{indent}{path[-1]}:"]
        for key, inner in value.items():
            lines += _render(inner, (*path, str(key)), origin)
        return lines
    return [f"{indent}{path[-1]}: {_yaml(value)} # {' '.join(origin(path).split())}"]


def _yaml(value: Any) -> str:
    """Write a value so that YAML reads the same one: JSON is YAML, but for numbers such as 1e-05."""
    if isinstance(value, float):
        mantissa, sign, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}{sign}{exponent}" if sign else mantissa
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)
