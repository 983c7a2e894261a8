"""What a job of each rule takes, measured or reckoned: the table resources/rates.tsv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path

RATES = Path("resources/rates.tsv")
DEVICES = ("cpu", "gpu")
GRADES = {
    "measured": "measured on slides of several sizes",
    "demo": "measured on the demo's small slides alone; how it grows is assumed",
    "learned": "learned from finished jobs of a study",
    "steps": "RECKONED from steps measured on an H100; no whole job was",
    "reckoned": "RECKONED, never measured",
    "assumed": "assumed",
}
"""Grade -> what a number of it rests on, from the surest down."""


@dataclass(frozen=True)
class Rate:
    """What one job of a rule takes: ``fixed_s + (work) / cores``, see :func:`nuclass.plan.work.seconds`.

    Attributes
    ----------
    rule, device
        The rule; ``cpu``, or ``gpu`` for jobs that ask for one.
    fixed_s
        Seconds that every job takes: start of the libraries, drawing, writing.
    kcell_s, mpx_s, mb_s
        Seconds of one core for 1,000 cells, a million px, 10^6 downloaded bytes.
    gflops
        10^9 operations a second of the networks; 0 for rules without.
    low, high
        Factors on all but ``fixed_s`` for the lowest and the highest time.
    cores
        Threads of a job that its work is shared by, at the most.
    mb, mb_kcell
        Memory (10^6 bytes) of a job, and more for 1,000 cells.
    grade, source
        One of :data:`GRADES`; where the numbers come from.
    """

    rule: str
    device: str
    fixed_s: float
    kcell_s: float
    mpx_s: float
    mb_s: float
    gflops: float
    low: float
    high: float
    cores: int
    mb: float
    mb_kcell: float
    grade: str
    source: str


COLUMNS = tuple(field.name for field in fields(Rate))
_TEXTS = ("rule", "device", "grade", "source")
Rates = dict[tuple[str, str], Rate]
ANY = "*"
"""The rule of the row that counts for rules without a row of their own."""


def read_rates(file: str | Path) -> Rates:
    """Return the rates by rule and device.

    Raises
    ------
    UserError
        The file is missing, lacks a column, or a value is no number of 0 or above, or no known word.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError("The table of rates is missing", where=path, fix="correct the path, or make it: plan --learn")
    lines = [(number, line) for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)]
    kept = [(number, line.split("\t")) for number, line in lines if line.strip() and not line.startswith("#")]
    if not kept or tuple(kept[0][1]) != COLUMNS:
        found = "\t".join(kept[0][1]) if kept else "nothing"
        raise UserError("A table of rates has other columns", where=path, found=found, expected="\t".join(COLUMNS))
    rates: Rates = {}
    for number, row in kept[1:]:
        rate = _rate(dict(zip(COLUMNS, row, strict=False)), f"{path}, line {number}")
        rates[rate.rule, rate.device] = rate
    return rates


def _rate(row: Mapping[str, str], where: str) -> Rate:
    if len(row) != len(COLUMNS):
        raise UserError("A row of rates is short", where=where, found=f"{len(row)} fields", expected=str(len(COLUMNS)))
    numbers = {}
    for name in COLUMNS:
        if name in _TEXTS:
            continue
        try:
            numbers[name] = float(row[name])
            if not 0 <= numbers[name] < float("inf"):
                raise ValueError
        except ValueError:
            raise UserError(
                f"The rate '{name}' of the rule {row['rule']} is no number of 0 or above", where=where, found=row[name]
            ) from None
    if row["device"] not in DEVICES or row["grade"] not in GRADES:
        raise UserError(
            "A word in the table of rates is not known",
            where=where,
            found=f"{row['device']}, {row['grade']}",
            expected=f"{' or '.join(DEVICES)}; {', '.join(GRADES)}",
        )
    cores = max(int(numbers.pop("cores")), 1)
    return Rate(
        rule=row["rule"], device=row["device"], cores=cores, grade=row["grade"], source=row["source"], **numbers
    )


def write_rates(file: str | Path, rates: Rates, remarks: str) -> None:
    """Write a table of rates; ``remarks`` come before it, each line with a #."""
    rows = ["\t".join(_text(getattr(rate, name)) for name in COLUMNS) for rate in rates.values()]
    told = [f"# {line}" for line in remarks.splitlines()]
    with atomic_path(file) as temporary:
        temporary.write_text("\n".join([*told, "\t".join(COLUMNS), *rows]) + "\n", encoding="utf-8")


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def rate_of(rates: Rates, rule: str, gpu: bool) -> Rate:
    """Return the rate of a rule: its own, that of the rule it is derived from, else that of any rule."""
    device = "gpu" if gpu else "cpu"
    for name in (rule, origin(rule), ANY):
        if (name, device) in rates:
            return rates[name, device]
    return rates[ANY, "cpu"]


_DERIVED = {
    "embed_training_context": "embed_context",
    "embed_gate_context": "embed_context",
    "embed_stand_ins": "embed_baseline",
    "train_stand_ins_linear": "train_baseline_linear",
    "predict_stand_ins": "predict_baseline",
    "predict_baseline_linear": "predict_baseline",
    "predict_local": "predict",
}


def origin(rule: str) -> str:
    """Return the rule that does the same work: ``train_local`` of ``train_local_variant``."""
    name = rule.removesuffix("_variant")
    return _DERIVED.get(name, name)
