"""Slides, rates and jobs whose costs are easily reckoned by hand."""

from __future__ import annotations

from nuclass.core.sizes import Estimate, SlideSize
from nuclass.plan.jobs import Job
from nuclass.plan.rates import Rate, Rates

SHARES = (0.5, 0.25)
NETWORK = {"name": "uni2-h"}
"""370.94 GFLOP a picture."""


def slide(name: str, cells: float, mpx: float = 100.0, role: str = "train", source: str = "synthetic") -> SlideSize:
    """A slide of a known size; 93 % of a synthetic one's cells are used."""
    return SlideSize(name, "lung", role, source, Estimate.exactly(cells), Estimate.exactly(mpx), "by hand")


def rate(rule: str, device: str = "cpu", **more: float | int | str) -> Rate:
    """A rate that is nothing but what is given."""
    plain = {"fixed_s": 0.0, "kcell_s": 0.0, "mpx_s": 0.0, "mb_s": 0.0, "gflops": 0.0, "low": 1.0, "high": 1.0}
    rest = {"cores": 1, "mb": 0.0, "mb_kcell": 0.0, "grade": "measured", "source": "by hand"}
    return Rate(**{"rule": rule, "device": device, **plain, **rest, **more})  # type: ignore[arg-type]


def rates(*given: Rate) -> Rates:
    """A table of rates, with a row for rules without."""
    return {(row.rule, row.device): row for row in (rate("*"), rate("*", "gpu"), *given)}


def chain_of_jobs() -> list[Job]:
    """Two slides that are built and labelled side by side, then one training on a GPU; the first is built already."""
    return [
        Job(0, "build_slide", {"slide": "a"}, threads=4, needed=False),
        Job(1, "build_slide", {"slide": "b"}, threads=4),
        Job(2, "label_cells", {"slide": "a"}, before=[0]),
        Job(3, "label_cells", {"slide": "b"}, before=[1]),
        Job(4, "train_local", threads=8, gpus=2, before=[2, 3], inputs=["results/labels/a/labels.parquet"]),
        Job(5, "all", makes=False, before=[4]),
    ]
