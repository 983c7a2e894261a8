"""Tables and figure of runs under changed settings, and of the audit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nuclass.core.files import write_csv, write_json
from nuclass.evaluation.ablation import COLUMNS as RUN_COLUMNS
from nuclass.evaluation.audit import COLUMNS, EXPECTED
from nuclass.figures.audit import draw_audit
from nuclass.tables.ablation import GUIDANCE, audit, left_out, runs_table, seeds
from table_example import lay_out
from test_figures import check
from test_workflow import REPOSITORY

STYLE = REPOSITORY / "resources/style/nuclass.mplstyle"
SHORT = "config/models/demo.yaml"


def comparison(values: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Runs by value: macro-F1 of the fused model on the cohorts, and its difference to the reference."""
    rows = []
    for value, (estimate, gap) in values.items():
        for model in ("global", "fused"):
            for cells in ("cohorts", "val"):
                for metric in ("macro_f1", "accuracy", "log_loss", "ece"):
                    ends = {"low": estimate - 0.02, "high": estimate + 0.02} if metric != "ece" else {}
                    edges = (
                        {"difference_low": gap - 0.01, "difference_high": gap + 0.01}
                        if gap
                        else {"difference_low": 0.0, "difference_high": 0.0}
                    )
                    keys = {"group": "guidance", "run": f"g_{value}", "value": value, "model": model, "cells": cells}
                    rows.append({**keys, "metric": metric, "estimate": estimate, "difference": gap, **ends, **edges})
    return pd.DataFrame(rows, columns=RUN_COLUMNS)


def lines(path: Path, start: str) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(start)]


def test_runs_are_laid_out_with_their_differences(tmp_path):
    write_csv(tmp_path / "in.csv", comparison({"label": (0.7, 0.0), "entropy": (0.65, -0.05), "none": (0.705, 0.005)}))
    table = runs_table(
        tmp_path / "in.csv", title="With and without", first="weight", models=["fused"], values=GUIDANCE, short=SHORT
    )
    told = lay_out(table, tmp_path / "a", synthetic=True)
    assert told.startswith("# With and without\n\n## Fused (gate)\n")
    assert lines(tmp_path / "a.md", "| by label")[0].split(" | ")[1:] == [
        "0.700 (0.680 to 0.720) †",
        "0.700 (0.680 to 0.720) †",
        "0.700 (0.680 to 0.720)",
        "0.700",
        "reference |",
    ]
    assert lines(tmp_path / "a.md", "| by entropy")[0].endswith("| **-0.050 (-0.060 to -0.040)** |")
    none = lines(tmp_path / "a.md", "| none")[0]
    assert none.endswith("| +0.005 (-0.005 to +0.015) |")
    assert none.startswith("| none (gamma 0) | **0.705 (0.685 to 0.725)** | **0.705 (0.685 to 0.725)** | 0.705 (")
    assert none.split(" | ")[3:5] == ["0.705 (0.685 to 0.725) ‡", "0.705 ‡"], "its difference to the least is not known"
    assert " | **0.650 (0.630 to 0.670)** | **0.650** | " in lines(tmp_path / "a.md", "| by entropy")[0], (
        "least is best"
    )
    assert "section `ablations` of `config/models/demo.yaml`" in told
    assert "Synthetic study" in told
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "in.csv"))


def test_a_study_that_is_not_shortened_does_not_say_so(tmp_path):
    write_csv(tmp_path / "in.csv", comparison({"1024": (0.7, 0.0)}))
    told = lay_out(runs_table(tmp_path / "in.csv", title="S", first="side", models=["global"]), tmp_path / "a")
    assert "shorter" not in told
    assert "| 1024 |" in told, "a number stays as it was written"


def test_seeds_are_told_with_their_spread(tmp_path):
    rows = [
        {
            "model": model,
            "cells": cells,
            "metric": metric,
            "runs": 3,
            "mean": 0.7,
            "sd": 0.012,
            "min": 0.69,
            "max": 0.71,
        }
        for model in ("local", "fused")
        for cells in ("cohorts", "val")
        for metric in ("macro_f1", "accuracy", "log_loss", "ece")
    ]
    write_csv(tmp_path / "in.csv", pd.DataFrame(rows))
    lay_out(seeds(tmp_path / "in.csv", short=SHORT), tmp_path / "a", synthetic=True)
    assert lines(tmp_path / "a.md", "| Fused")[0].split(" | ")[1:3] == ["3", "0.700 ± 0.012 (0.690 to 0.710)"]


def test_an_organ_that_was_never_seen(tmp_path):
    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    models = {
        f"lung {mode}": {m: interval(v) for m in ("macro_f1", "accuracy", "log_loss")}
        for mode, v in (("film", 0.5), ("none", 0.45))
    }
    gap = {"lung film-lung none": {"macro_f1": interval(0.05)}}
    behind = {"lung none": {"macro_f1": {"best": "lung film", **interval(-0.05)}}}
    write_json(
        tmp_path / "a.json",
        {
            "organ": "lung",
            "n_cells": 90,
            "outside": {"Alveolar": 7},
            "models": models,
            "differences": gap,
            "behind": behind,
        },
    )
    lay_out(left_out([tmp_path / "a.json"], short=SHORT), tmp_path / "a", synthetic=True)
    film, none = lines(tmp_path / "a.md", "| lung")
    assert film.startswith("| lung | FiLM | 90 | **0.500 (0.400 to 0.600)** |")
    assert none.startswith("| lung | No organ | 90 | 0.450 (0.350 to 0.550) † | 0.450 (0.350 to 0.550) ‡ |")
    assert film.endswith("| – |")
    assert none.endswith("| +0.050 (-0.050 to +0.150) |")
    assert pd.read_csv(tmp_path / "a.csv")["n_outside"].tolist() == [7, 7]


def test_no_organ_left_out_says_so(tmp_path):
    assert "No organ is left out" in lay_out(left_out([], short=SHORT), tmp_path / "a")


def audit_table() -> pd.DataFrame:
    def told(switch: str, gap: float, verdict: str, **more: object) -> dict[str, object]:
        where, expected, why = EXPECTED[switch]
        return {
            "switch": switch,
            "metric": "macro_f1",
            "cells": 900,
            "estimate": 0.7 + gap,
            "low": 0.66 + gap,
            "high": 0.74 + gap,
            "difference": gap,
            "difference_low": gap - 0.02,
            "difference_high": gap + 0.02,
            "val": 0.75,
            "val_low": 0.7,
            "val_high": 0.8,
            "val_difference": 0.01,
            "val_difference_low": -0.01,
            "val_difference_high": 0.03,
            "optimism": 0.05 - gap,
            "flattery": 0.01 - gap,
            "flattery_low": -0.02 - gap,
            "flattery_high": 0.04 - gap,
            "expected_on": where,
            "expected": expected,
            "why": why,
            "seed_noise": 0.015,
            "verdict": verdict,
            "val_expected": "",
            "val_verdict": "",
            "idle": "",
            **more,
        }

    def flattery(gap: float) -> dict[str, float]:
        return {"flattery": gap, "flattery_low": gap - 0.02, "flattery_high": gap + 0.02}

    no_val = dict.fromkeys(name for name in COLUMNS if name.startswith("val") or name == "optimism")
    reference = {
        "switch": "reference",
        "metric": "macro_f1",
        "cells": 900,
        "estimate": 0.7,
        "low": 0.66,
        "high": 0.74,
        "difference": 0.0,
        "difference_low": 0.0,
        "difference_high": 0.0,
        "val": 0.75,
        "val_low": 0.7,
        "val_high": 0.8,
        "optimism": 0.05,
        "idle": "",
    }
    rows = [
        reference,
        told("inverted_mpp", -0.2, "as expected"),
        told("frozen_heads", 0.0, "changes nothing", idle="no joint fine-tuning is asked for", val_difference=0.0),
        told("closed_set", 0.03, "as expected", **no_val, **flattery(0.03)),
        told("policy_on_test", 0.001, "not seen", metric="accuracy", **no_val, **flattery(0.001)),
        told("released", -0.1, "as expected", val_expected="higher", val_verdict="against expectation"),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_audit_is_laid_out(tmp_path):
    write_csv(tmp_path / "in.csv", audit_table())
    lay_out(audit(tmp_path / "in.csv", short=SHORT), tmp_path / "a", synthetic=True)
    reference = lines(tmp_path / "a.md", "| reference")[0]
    assert reference == "| reference | 0.700 (0.660 to 0.740) | – | 0.750 (0.700 to 0.800) | – | +0.050 | – | – | – |"
    worse = lines(tmp_path / "a.md", "| `inverted_mpp`")[0]
    assert "| **-0.200 (-0.220 to -0.180)** |" in worse
    assert "| 0.750 (0.700 to 0.800) | +0.010 (-0.010 to +0.030) | +0.250 | **+0.210 (+0.180 to +0.240)** |" in worse
    assert worse.endswith("| cohorts: lower | as expected |")
    assert "But `policy_on_test` is of the study's own models." in (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "| 0 (idle) |" in lines(tmp_path / "a.md", "| `frozen_heads`")[0]
    assert lines(tmp_path / "a.md", "| `frozen_heads`")[1] == "| `frozen_heads` | no joint fine-tuning is asked for |"
    closed_set = lines(tmp_path / "a.md", "| `closed_set`")[0]
    assert closed_set.endswith("| – | – | – | **+0.030 (+0.010 to +0.050)** | cohorts: higher | as expected |")
    released = lines(tmp_path / "a.md", "| `released`")[0]
    told = "cohorts: lower; val: higher | cohorts: as expected; val: against expectation |"
    assert released.endswith(told), "judged on both"
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "(`splits.test` above 0)" in text, "what makes idle flaws act"
    assert "which is what the original reports" not in text
    assert "the original's headline is of such slides" in text


def test_an_audit_without_an_idle_flaw_has_its_differences(tmp_path):
    """The column ``idle`` is then empty in the file."""
    table = audit_table()
    write_csv(tmp_path / "in.csv", table[table["idle"].fillna("") == ""])
    lay_out(audit(tmp_path / "in.csv", short=""), tmp_path / "a", synthetic=False)
    assert "(idle)" not in (tmp_path / "a.md").read_text(encoding="utf-8")
    worse = lines(tmp_path / "a.md", "| `inverted_mpp`")
    assert "| **-0.200 (-0.220 to -0.180)** |" in worse[0]
    assert not worse[1].endswith("| – |")


def test_the_audit_is_drawn_with_its_numbers(tmp_path):
    write_csv(tmp_path / "in.csv", audit_table())
    outputs = [tmp_path / f"a.{ending}" for ending in ("pdf", "png", "svg")]
    draw_audit(tmp_path / "in.csv", outputs, tmp_path / "a.csv", style=STYLE, synthetic=True)
    drawn = check(tmp_path, "a")
    assert drawn["difference"].tolist() == audit_table()["difference"].tolist()
    text = outputs[2].read_text(encoding="utf-8")
    words = ["inverted_mpp", "policy_on_test (accuracy)", "as expected", "not seen", "Macro-F1 of the fused model"]
    for word in (*words, "val, which chose the models", "Flatters by", "◂  ▸ on val"):
        assert f">{word}<" in text
    assert "the original reports" not in text


def test_a_flaw_is_drawn_by_the_cells_it_is_judged_by():
    from matplotlib.figure import Figure

    from nuclass.figures.audit import _differences

    table = audit_table()
    table = table[table["expected"].notna()].assign(idle="").reset_index(drop=True)
    table[["val_expected", "val_verdict"]] = table[["val_expected", "val_verdict"]].fillna("")
    table.loc[0, ["expected_on", "val_difference", "verdict"]] = ["val", 0.123, "against expectation"]
    ax = Figure().subplots()
    _differences(ax, table)
    drawn = [tuple(point) for dots in ax.collections if hasattr(dots, "get_offsets") for point in dots.get_offsets()]
    assert (0.123, 0) in drawn
    assert (table["difference"][2], 2) in drawn
    assert (table["difference"][0], 0) not in drawn
    both = table["switch"].tolist().index("released")
    assert (table["difference"][both], both) in drawn
    assert (table["val_difference"][both], both + 0.28) in drawn, "all flaws together are judged on val as well"


def test_an_audit_of_nothing_is_a_figure_that_says_so(tmp_path):
    write_csv(tmp_path / "in.csv", audit_table().head(1))
    draw_audit(tmp_path / "in.csv", [tmp_path / "a.svg"], tmp_path / "a.csv", style=STYLE, synthetic=False)
    assert "No flaw of the original was audited" in (tmp_path / "a.svg").read_text(encoding="utf-8")
