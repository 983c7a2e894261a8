"""Settings changed on the command line: ``key=value``, the key a full path or the end of one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_origin

from nuclass.core.errors import UserError
from nuclass.core.names import GATE, GLOBAL, LOCAL
from nuclass.core.protocol import parse_protocol
from nuclass.training.config import Models, to_plain
from nuclass.training.parsing import bare, section_of, section_types

Keys = tuple[str, ...]
PROTOCOL = "protocol"
USES: dict[str, Keys] = {
    LOCAL: (LOCAL, PROTOCOL),
    GLOBAL: (GLOBAL, "context", "predict", PROTOCOL),
    GATE: (GATE, GLOBAL, "predict", PROTOCOL),
}
"""Model -> the sections that its training reads, its own first."""
PART_OF = {(GATE, GLOBAL): "augment"}
"""Model, section -> the only part of the section that its training reads."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_BATCH = "the original's is what one step of the optimizer sees; here that is batch_size x accumulate x devices"
_WORKERS = "with 0 the training process reads; windows in memory_mb need none"
_COMPILE = "auto, true or false; the original took 'off' as on"
_EVERY = "the same up to 1; above 1 it counts whole epochs"
_READING = "files of windows are read block by block, without a cache to set"
_ONE = "the gate learns from kept outputs of both models, in minutes on one device; making these goes by predict"
_GATE_LR = "the original's is the gate's own rate; joint.lr_gate is that of the joint fine-tuning"
ORIGINAL: dict[str, dict[str, tuple[str, str]]] = {
    "batch_size": {LOCAL: ("trainer.batch_size", _BATCH), GLOBAL: ("trainer.batch_size", _BATCH)},
    "num_workers": dict.fromkeys((LOCAL, GLOBAL), ("trainer.workers", _WORKERS)),
    "freeze_backbone_epochs": {LOCAL: ("optimizer.freeze_epochs", "the same: epochs before the backbone learns")},
    "freeze_uni_epochs": {GLOBAL: ("optimizer.freeze_epochs", "the same: epochs before the backbone learns")},
    "val_check_interval": dict.fromkeys((LOCAL, GLOBAL), ("trainer.validate_every", _EVERY)),
    "use_torch_compile": dict.fromkeys((LOCAL, GLOBAL), ("trainer.compile", _COMPILE)),
    "a_focus_gamma": {GLOBAL: ("loss.gamma", "the same power, of a frozen local model's 1 - pA(y)")},
    "lr_gate": {GATE: ("optimizer.lr", _GATE_LR)},
    "gate_conflict_boost": {GATE: ("loss.conflict_boost", "the same")},
    "gate_delta_scale": {GATE: ("loss.delta_scale", "the same")},
    "gate_delta_gamma": {GATE: ("loss.delta_gamma", "the same")},
    "gate_pos_weight": {
        GATE: ("loss.pos_weight", "auto is taken over all fitting cells, not over each batch of 12 cells")
    },
    "limit_val_batches": {GATE: ("", "validation sees all cells; -o protocol.gate_first_cells=true limits it")},
    "h5_open_swmr": dict.fromkeys((GLOBAL, GATE), ("", _READING)),
    "trainer.devices": {GATE: ("", _ONE)},
}
"""Flat keys of the original's configuration -> model -> our key (none where there is nothing to set), what differs."""


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``; the value is YAML, in which ``1e-4`` is a number too.

    Raises
    ------
    UserError
        There is no ``=``, no key or no value, or the value is not YAML.
    """
    import yaml

    key, sign, written = text.partition("=")
    if not sign or not key.strip() or not written.strip():
        raise UserError(
            "A setting is not written as key=value",
            where=f"-o {text}",
            expected="such as -o max_epochs=20 or -o 'trainer.devices=[0, 1]'; null for no value",
        )
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError as error:
        raise UserError(
            "The value of a setting is not YAML",
            where=f"-o {text}",
            found=getattr(error, "problem", None) or str(error),
            fix="quote it for the shell: -o 'hidden=[256, 64]'",
        ) from error
    return key.strip(), _numbers(value)


def find_setting(key: str, model: str) -> Keys:
    """Return the full path of a setting that ``key`` names when ``model`` is trained.

    The sections are those that the training reads (``USES``); the model's own needs no name in front. A key is a full
    path, or the end of one where only one setting ends so: of the model's own section, else of the others.

    Raises
    ------
    UserError
        Several settings end so (all are listed), none does (the nearest is named), or it is a key of the original
        that is called otherwise here.
    """
    parts = tuple(key.split("."))
    paths = list(_paths(model))
    known = dict(paths)
    for path in ((model, *parts), parts):
        if path in known:
            return path
        inside = [path[:end] for end in range(len(path) - 1, 0, -1) if known.get(path[:end]) == "free"]
        if inside:
            return path
    if key in ORIGINAL and model in ORIGINAL[key]:
        raise _called_otherwise(key, model)
    ends = [path for path, _ in paths if path[-len(parts) :] == parts]
    own = [path for path in ends if path[0] == model] or ends
    if len(own) == 1:
        return own[0]
    if own:
        listed = ", ".join(_short(path, model) for path in own)
        raise UserError(
            f"Several settings are called '{key}'",
            where="-o",
            found=listed,
            fix=f"name one: -o {_short(own[0], model)}=",
        )
    raise _unknown(key, model, [path for path, _ in paths])


def apply_overrides(
    data: Mapping[str, Any], overrides: Sequence[str], model: str
) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Return the settings with ``overrides`` laid over them, and for each changed path the override it came from.

    Parameters
    ----------
    data
        Sections of a model file.
    overrides
        ``key=value`` each, later ones winning. A section as value is merged into the one that is there, except where
        its keys are another library's, such as ``backbone``: those of one network make no sense for another.
    """
    result = {name: _apart(section) for name, section in data.items()}
    origin: dict[Keys, str] = {}
    for text in overrides:
        key, value = parse_override(text)
        path = find_setting(key, model)
        if path == (PROTOCOL,):
            value = to_plain(parse_protocol(value, where=f"-o {text}"))
        whole = dict(_paths(model)).get(path) == "free"
        _put(result, path, value, text, whole=whole)
        for changed in [path] if whole else _leaves(value, path):
            origin = {kept: source for kept, source in origin.items() if kept[: len(changed)] != changed}
            origin[changed] = f"-o {text}"
    return result, origin


def _leaves(value: Any, path: Keys) -> list[Keys]:
    """Return the paths that a value sets, those inside a section one by one."""
    if not isinstance(value, dict) or not value:
        return [path]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, str(key)))]


def _put(data: dict[str, Any], path: Keys, value: Any, text: str, *, whole: bool) -> None:
    place = data
    for number, part in enumerate(path[:-1], start=1):
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(
                f"{'.'.join(path[:number])} is no section that could be changed key by key",
                where=f"-o {text}",
                found="null: it is off" if inner is None else repr(inner)[:80],
                fix="set the whole section in a file",
            )
        place = inner
    if not whole and isinstance(value, dict) and isinstance(place.get(path[-1]), dict):
        _merge(place[path[-1]], value)
    else:
        place[path[-1]] = value


def _apart(value: Any) -> Any:
    """Copy settings so that sections which YAML shares by an anchor are changed one by one."""
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


def _merge(into: dict[str, Any], data: dict[str, Any]) -> None:
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _numbers(value: Any) -> Any:
    """Read text such as ``1e-4`` as a number, also in lists and sections."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    return value


def _paths(model: str) -> Iterator[tuple[Keys, str]]:
    """Yield the path of every setting that the training of a model reads, with its kind: section, free or value."""
    kinds = section_types(Models)
    for name in USES[model]:
        only = PART_OF.get((model, name))
        for path, kind in _walk(kinds[name], (name,)):
            if (only is None or path[1:2] == (only,)) and path[-2:] != ("augment", "black_corners"):
                yield path, kind


def _walk(kind: Any, path: Keys) -> Iterator[tuple[Keys, str]]:
    inner = section_of(kind)
    plain, _ = bare(kind)
    yield path, "section" if inner else "free" if get_origin(plain) is dict else "value"
    for key, part in section_types(inner).items() if inner else ():
        yield from _walk(part, (*path, key))


def _short(path: Keys, model: str) -> str:
    return ".".join(path[1:] if path[0] == model and len(path) > 1 else path)


def _called_otherwise(key: str, model: str) -> UserError:
    ours, differs = ORIGINAL[key][model]
    return UserError(
        f"'{key}' of the original is called '{ours}' here"
        if ours
        else f"'{key}' of the original has no counterpart here",
        where=f"-o {key}=",
        expected=differs,
        fix=f"write -o {ours}=... and mind the difference" if ours else "leave it out",
    )


def _unknown(key: str, model: str, paths: list[Keys]) -> UserError:
    names: dict[str, Keys] = {}
    for path in reversed(paths):
        for start in range(len(path)):
            names[".".join(path[start:])] = path
    near = get_close_matches(key, list(names), n=1, cutoff=0.6) or get_close_matches(
        key.rsplit(".", 1)[-1], list(names), n=1, cutoff=0.6
    )
    hint = f" Did you mean '{_short(names[near[0]], model)}'?" if near else ""
    sections = set(section_types(Models)) - set(USES[model])
    other = key.split(".", 1)[0] in sections
    return UserError(
        f"The training of the {model} model does not read '{key}'" if other else f"There is no setting '{key}'.{hint}",
        where=f"-o {key}=",
        expected=f"a setting of {', '.join(USES[model])}; `nuclass train {model} --print-config` lists them",
    )
