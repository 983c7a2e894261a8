"""The gate against other ways to fuse, from prediction tables to tables and figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import f1_score, log_loss

from fake_study import CLASSES, ORGANS, write_predictions
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_parquet
from nuclass.core.readings import ALL_CLASSES, GATE_PARTS
from nuclass.evaluation import compare_cohorts, gate_ablation
from nuclass.evaluation.complementarity import complementarity_of_cohorts
from nuclass.evaluation.embedding_space import compare_embeddings
from nuclass.evaluation.gate_ablation import (
    OTHERS,
    SAFE,
    SAFE_ON_REPORTED,
    SAFE_ON_VAL,
    compare_fusions_of_cohorts,
    fit_rules,
    select_val,
)
from nuclass.evaluation.gate_behaviour import describe_gate_of_cohorts
from nuclass.evaluation.metrics import ece
from nuclass.evaluation.policy import fit_policy
from nuclass.evaluation.predictions import read_models
from nuclass.figures.complementarity import draw_complementarity
from nuclass.figures.fusion import draw_fusion
from nuclass.figures.gate import draw_gate
from nuclass.tables import fusion as tables
from nuclass.tables.layout import SYNTHETIC_NOTE
from nuclass.tables.layout import UNKNOWN as NOT_KNOWN
from table_example import follows_the_sheet, lay_out, rows

ROOT = Path(__file__).parents[1]
LOOK = {"classes": ROOT / "resources" / "classes.tsv", "style": ROOT / "resources" / "style" / "nuclass.mplstyle"}
OPTIONS = {"mpp": 0.25, "block_um": 150, "draws": 40, "seed": 1, "bins": 15, "min_support": 5}
Paths = dict[str, dict[str, Path]]


def training_predictions(folder: Path, n: int = 240) -> Paths:
    """Predictions of training slides: two val cells of three, the others test."""
    out: Paths = {}
    for model, files in write_predictions(folder, n=n, seed=11).items():
        out[model] = {}
        for slide, path in files.items():
            table = pd.read_parquet(path)
            name = slide.replace("_h", "_1")
            table["slide"], table["split"] = name, np.where(np.arange(n) % 3, "val", "test")
            out[model][name] = path.with_name(f"{name}.parquet")
            write_parquet(out[model][name], table)
    return out


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    paths, training = write_predictions(folder / "cohorts", n=300), training_predictions(folder / "training")
    compare_fusions_of_cohorts(paths, training, folder / "f.json", folder / "f.csv", **OPTIONS)
    compare_fusions_of_cohorts(paths, training, folder / "r.json", folder / "r.csv", policy_on_test=True, **OPTIONS)
    few = {key: OPTIONS[key] for key in ("mpp", "block_um", "draws", "seed")}
    complementarity_of_cohorts(paths, folder / "complementarity.csv", **few)
    parts = {part: folder / f"{part}.csv" for part in GATE_PARTS}
    describe_gate_of_cohorts(paths, parts, folder / "summary.json", mpp=0.25, square_um=150)
    return folder


def load(study: Path, kind: str = "cohorts") -> dict[str, gate_ablation.Predictions]:
    files = {model: sorted((study / kind / model).glob("*_[h1].parquet")) for model in ("local", "global", "gate")}
    if kind == "training":
        files = {model: [p for p in paths if p.stem.endswith("_1")] for model, paths in files.items()}
    return read_models(files)


def test_every_way_is_there_with_every_score(study: Path) -> None:
    results = read_json(study / "f.json")["cohorts"]
    assert list(results) == [*ORGANS, "all"]
    for result in results.values():
        for name in ("local", "global", "fused", *OTHERS):
            scores = {"accuracy", "macro_f1"} | ({"log_loss", "ece"} if name != "oracle" else set())
            assert scores <= set(result["models"][name])
            if name not in ("local", "global", "fused"):
                assert scores <= set(result["differences"][f"fused-{name}"])
        for name, difference in result["differences"].items():
            first, second = name.split("-")
            for metric in ("accuracy", "macro_f1", "log_loss", "ece"):
                if metric in difference:
                    a, b = (result["models"][m][metric]["value"] for m in (first, second))
                    assert difference[metric]["value"] == pytest.approx(a - b, abs=1e-9)
        # A choice of a branch cannot beat the perfect one; a mixture can, where both are wrong in different ways.
        choices = ("local", "global", "max_confidence", SAFE, SAFE_ON_REPORTED)
        best = max(result["models"][name]["accuracy"]["value"] for name in choices)
        assert result["models"]["oracle"]["accuracy"]["value"] >= best


def test_values_are_those_of_scikit_learn(study: Path) -> None:
    results = read_json(study / "f.json")["cohorts"]["all"]["models"]
    models, val = load(study), select_val(load(study, "training"))
    y, p = models["gate"].y, models["gate"].probs
    assert results["fused"]["accuracy"]["value"] == pytest.approx((p.argmax(1) == y).mean())
    assert results["fused"]["ece"]["value"] == pytest.approx(ece(y, p))
    fits = fit_rules(val, mpp=0.25, block_um=150, seed=1)
    stacked = fits.stacking.predict(models["local"].probs, models["global"].probs)
    assert results["stacking"]["log_loss"]["value"] == pytest.approx(log_loss(y, stacked, labels=range(len(CLASSES))))
    chosen = [i for i, n in enumerate(np.bincount(y, minlength=len(CLASSES))) if n >= 5]
    assert results["stacking"]["macro_f1"]["value"] == pytest.approx(
        f1_score(y, stacked.argmax(1), labels=chosen, average="macro"), abs=1e-9
    )


def test_only_val_cells_of_training_slides_are_fitted_to(study: Path, tmp_path: Path) -> None:
    val = select_val(load(study, "training"))
    assert set(val["gate"].table["split"]) == {"val"}
    assert len(val["gate"].y) == 3 * sum(1 for i in range(240) if i % 3)
    assert read_json(study / "f.json")["fitted"]["val_cells"] == len(val["gate"].y)
    # What stands in the other cells of the training slides, and in the cohorts, changes no fit.
    before = fit_rules(val, mpp=0.25, block_um=150, seed=1)
    other = training_predictions(tmp_path)
    for files in other.values():
        for path in files.values():
            table = pd.read_parquet(path)
            test = (table["split"] == "test").to_numpy()
            table.loc[test, "label"] = np.roll(table.loc[test, "label"], 1)
            write_parquet(path, table)
    models = read_models({model: sorted(files.values()) for model, files in other.items()})
    after = fit_rules(select_val(models), mpp=0.25, block_um=150, seed=1)
    assert before.temperatures == after.temperatures
    np.testing.assert_array_equal(before.stacking.model.coef_, after.stacking.model.coef_)
    np.testing.assert_array_equal(before.policy.reliability_local, after.policy.reliability_local)


def test_both_ways_of_tuning_the_policy_are_told(study: Path) -> None:
    models = load(study)
    y, p_local, p_global = models["gate"].y, models["local"].probs, models["global"].probs
    gate = models["gate"].table["gate"].to_numpy()
    released = fit_policy(y, p_local, p_global, gate)
    for name, in_force in (("f", SAFE_ON_VAL), ("r", SAFE_ON_REPORTED)):
        result = read_json(study / f"{name}.json")["cohorts"]["all"]
        policy = result["policy"]
        assert policy["in_force"] == in_force
        assert policy["accuracy"][SAFE_ON_REPORTED] == pytest.approx(released.accuracy)
        assert result["models"][SAFE]["accuracy"]["value"] == policy["accuracy"][in_force]
        optimism = result["differences"][f"{SAFE_ON_REPORTED}-{SAFE_ON_VAL}"]["accuracy"]["value"]
        assert optimism == pytest.approx(policy["accuracy"][SAFE_ON_REPORTED] - policy["accuracy"][SAFE_ON_VAL])
    first, second = (read_json(study / f"{n}.json")["cohorts"]["all"]["policy"]["accuracy"] for n in "fr")
    assert first == second
    tuned = fit_rules(select_val(load(study, "training")), mpp=0.25, block_um=150, seed=1).policy
    on_val = tuned.apply(p_local, p_global, gate).argmax(axis=1) == y
    assert first[SAFE_ON_VAL] == pytest.approx(on_val.mean())
    results = read_json(study / "f.json")["cohorts"]
    for slide in ORGANS:
        here = (models["gate"].table["slide"] == slide).to_numpy()
        assert results[slide]["policy"]["accuracy"][SAFE_ON_VAL] == pytest.approx(on_val[here].mean())
    assert any(len(set(found["policy"]["accuracy"].values())) == 2 for found in results.values())


def test_tuning_on_the_reported_cells_flatters_where_there_is_nothing_to_learn() -> None:
    """Labels at random: a policy tuned on them seems to beat chance, one tuned elsewhere does not."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(60):
        y = rng.integers(6, size=(2, 150))
        p = rng.dirichlet(np.ones(6), (2, 2, 150))
        gate = rng.random((2, 150))
        tuned = [fit_policy(y[i], *p[i], gate[i]) for i in (0, 1)]
        honest = (tuned[0].apply(*p[1], gate[1]).argmax(axis=1) == y[1]).mean()
        gains.append((tuned[1].accuracy - 1 / 6, honest - 1 / 6))
    flattered, honest = np.mean(gains, axis=0)
    assert flattered > 0.02
    assert abs(honest) < 0.01


def test_closed_set_reads_all_models_so(study: Path, tmp_path: Path) -> None:
    paths = {m: {p.stem: p for p in sorted((study / "cohorts" / m).glob("*.parquet"))} for m in ("local", "global")}
    paths["gate"] = {p.stem: p for p in sorted((study / "cohorts" / "gate").glob("*.parquet"))}
    training = {m: {p.stem: p for p in sorted((study / "training" / m).glob("*_1.parquet"))} for m in paths}
    found = compare_fusions_of_cohorts(
        paths, training, tmp_path / "c.json", tmp_path / "c.csv", closed_set=True, **OPTIONS
    )
    other = compare_cohorts(paths, tmp_path / "d.json", tmp_path / "d.csv", closed_set=True, **OPTIONS)
    for cohort in found:
        for name in ("local", "fused", "oracle"):
            for metric in ("accuracy", "macro_f1"):
                assert found[cohort]["models"][name][metric] == other[cohort]["models"][name][metric]


def test_bad_inputs(study: Path, tmp_path: Path) -> None:
    paths = {m: {p.stem: p for p in (study / "cohorts" / m).glob("*.parquet")} for m in ("local", "global", "gate")}
    outputs = (tmp_path / "a.json", tmp_path / "a.csv")
    with pytest.raises(UserError, match="no val cell"):
        compare_fusions_of_cohorts(paths, paths, *outputs, **OPTIONS)
    training = {m: {p.stem: p for p in (study / "training" / m).glob("*_1.parquet")} for m in paths}
    with pytest.raises(UserError, match="slides that they are reported on"):
        compare_fusions_of_cohorts(training, training, *outputs, **OPTIONS)
    fewer: Paths = {}
    for model, files in training.items():
        for slide, path in files.items():
            table = pd.read_parquet(path)
            table = table[table["label"] != "Acinar"].drop(columns="prob_Acinar")
            columns = [c for c in table if c.startswith("prob_")]
            table[columns] = table[columns].div(table[columns].sum(axis=1), axis=0)
            fewer.setdefault(model, {})[slide] = tmp_path / model / path.name
            write_parquet(fewer[model][slide], table)
    with pytest.raises(UserError, match="different classes"):
        compare_fusions_of_cohorts(paths, fewer, *outputs, **OPTIONS)
    assert not outputs[0].exists()


def test_table_gate_ablation(study: Path, tmp_path: Path) -> None:
    text = lay_out(tables.gate_ablation(study / "f.json", study / "f.csv"), tmp_path / "t", synthetic=True)
    assert SYNTHETIC_NOTE in text
    found = rows(tmp_path / "t.md")
    ways = [row[0] for row in found[2:11]]
    assert ways == [
        *("Local", "Global", "Plain mean", "Fused (gate)", "Product", "Surer of the two"),
        *("Stacking", "Safety policy", "Oracle"),
    ]
    data = pd.read_csv(tmp_path / "t.csv")
    starts = [place for place, row in enumerate(found) if row[0] == "way"]
    for start, metric in zip(starts, ("accuracy", "macro_f1", "log_loss", "ece"), strict=True):
        here = data[(data["cohort"] == "lung_h") & (data["metric"] == metric)].set_index("name")["value"]
        names = [name for name in tables.WAYS if name in here and name != "oracle"]
        best = here[names].min() if metric in ("log_loss", "ece") else here[names].max()
        bold = [row[0] for row in found[start + 2 : start + 2 + len(names)] if row[2].startswith("**")]
        assert bold == [tables.title(name) for name in names if f"{here[name]:.3f}" == f"{best:.3f}"], metric
    assert NOT_KNOWN not in text, "of all but the oracle the difference to the best is known"
    policy = next(row for row in found if row[0] == "All cohorts")
    accuracy = read_json(study / "f.json")["cohorts"]["all"]["policy"]["accuracy"]
    assert policy[2].startswith(f"{accuracy[SAFE_ON_VAL]:.3f} (")
    assert policy[3].startswith(f"{accuracy[SAFE_ON_REPORTED]:.3f} (")


def test_tables_complementarity_and_gate(study: Path, tmp_path: Path) -> None:
    lay_out(tables.complementarity(study / "complementarity.csv"), tmp_path / "c")
    data = pd.read_csv(tmp_path / "c.csv")
    assert (data[["A_only", "B_only", "Both", "Neither"]].sum(axis=1) == data["N"]).all()
    assert sum(row[0] == "**All classes**" for row in rows(tmp_path / "c.md")) == 4
    assert "\n## ovary h\n" in (tmp_path / "c.md").read_text()
    inputs = (study / "summary.json", study / "by_truth.csv", study / "by_class.csv")
    text = lay_out(tables.gate(*inputs), tmp_path / "g", synthetic=True, flaws="Protocol: x.")
    assert "**Protocol: x.**" in text
    found = next(row for row in rows(tmp_path / "g.md") if row[0] == "All cohorts")
    assert found[5] == f"{read_json(study / 'summary.json')['cohorts']['all']['auroc']:.3f}"
    kinds = ["T_Cell", "Fibroblast", "Endothelial"]
    assert follows_the_sheet(lambda sheet: tables.gate(*inputs, classes=sheet), tmp_path, kinds)
    counts = study / "complementarity.csv"
    assert follows_the_sheet(lambda sheet: tables.complementarity(counts, classes=sheet), tmp_path, kinds)


def test_table_film_vs_concat(study: Path, tmp_path: Path) -> None:
    files = {
        name: sorted((study / "cohorts" / m).glob("*.parquet")) for name, m in (("film", "local"), ("b", "global"))
    }
    result = compare_embeddings(files, subset=200, seed=1, draws=20, mpp=0.25, block_um=150)
    titles = {"film": "FiLM", "b": "Concatenation"}
    lay_out(tables.film_vs_concat(result, titles=titles), tmp_path / "f", synthetic=True)
    found = rows(tmp_path / "f.md")
    assert found[0] == ["metric", "FiLM", "Concatenation"]
    assert found[14] == ["metric", "FiLM minus Concatenation"]
    assert len(found) == 2 * (2 + 12)
    values = {m: result["models"][m]["davies_bouldin"] for m in ("film", "b")}
    row = next(row for row in found if row[0].startswith("Davies"))
    assert sum(cell.endswith("‡") for cell in row) == 1, "there is no interval of it"
    assert "‡" not in "".join(found[2] + found[3])
    assert "All models saw every organ of these cells in training" in (tmp_path / "f.md").read_text()
    assert row[1].startswith("**") == (values["film"] < values["b"])
    one = {name: [p for p in paths if p.stem == "lung_h"] for name, paths in files.items()}
    result = compare_embeddings(one, subset=200, seed=1, draws=20, mpp=0.25, block_um=150)
    lay_out(tables.film_vs_concat(result), tmp_path / "o", synthetic=True)
    leak = [row for row in rows(tmp_path / "o.md") if row[0].startswith("organ leakage")]
    assert [row[1:] for row in leak] == [["–", "–"], ["–"]]
    assert "one organ (lung)" in (tmp_path / "o.md").read_text()


def test_figures(study: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / "c.pdf", tmp_path / "c.png"]
    draw_complementarity(study / "complementarity.csv", pictures, tmp_path / "c.csv", synthetic=True, **LOOK)
    drawn = pd.read_csv(tmp_path / "c.csv")
    assert drawn["class"].iloc[-1] == ALL_CLASSES
    assert drawn["N"].iloc[:-1].sum() == drawn["N"].iloc[-1] == 900
    parts = {part: study / f"{part}.csv" for part in GATE_PARTS}
    pictures += [tmp_path / "g.pdf", tmp_path / "g.png"]
    draw_gate(parts, study / "summary.json", pictures[2:], tmp_path / "g.csv", synthetic=True, **LOOK)
    numbers = pd.read_csv(tmp_path / "g.csv")
    assert set(numbers["panel"]) == set(GATE_PARTS)
    assert numbers.loc[numbers["panel"] == "map", "cells"].sum() == 900
    for path in pictures[1::2]:
        with Image.open(path) as image:
            assert abs(image.width - 183 / 25.4 * 300) < 3
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_figure_fusion_has_the_safety_policy(study: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / f"f.{ending}" for ending in ("pdf", "png", "svg")]
    draw_fusion(study / "f.csv", pictures, tmp_path / "f.csv", style=LOOK["style"], synthetic=True)
    drawn = pd.read_csv(tmp_path / "f.csv").set_index(["cohort", "name", "metric"])
    found = read_json(study / "f.json")["cohorts"]
    safe = found["all"]["models"]["safe"]["accuracy"]
    assert drawn.loc[("all", "safe", "accuracy"), ["value", "low", "high"]].tolist() == pytest.approx(
        [safe["value"], safe["low"], safe["high"]]
    )
    here = found["lung_h"]["models"]
    gap = here["fused"]["accuracy"]["value"] - here["safe"]["accuracy"]["value"]
    assert drawn.loc[("lung_h", "fused-safe", "accuracy"), "value"] == pytest.approx(gap)
    # What figure branches shows is not shown again.
    assert not {"local", "global", "oracle", "fused-local", "fused-global"} & set(drawn.index.get_level_values("name"))
    gap = read_json(study / "f.json")["cohorts"]["all"]["differences"]["fused-stacking"]["macro_f1"]
    assert drawn.loc[("all", "fused-stacking", "macro_f1"), "value"] == pytest.approx(gap["value"])
    text = pictures[2].read_text()
    assert all(f">{word}<" in text for word in ("Safety policy", "Stacking", "Reached, all cohorts", "All cohorts"))
    with Image.open(pictures[1]) as image:
        assert abs(image.width - 183 / 25.4 * 300) < 3


def test_figure_fusion_without_a_difference_says_so(study: Path, tmp_path: Path) -> None:
    table = pd.read_csv(study / "f.csv", keep_default_na=False)
    table[~table["name"].str.contains("-")].to_csv(tmp_path / "in.csv", index=False)
    draw_fusion(tmp_path / "in.csv", [tmp_path / "f.svg"], tmp_path / "f.csv", style=LOOK["style"], synthetic=False)
    assert ">no difference is known<" in (tmp_path / "f.svg").read_text()


def test_gate_figure_without_a_conflict_and_of_one_slide(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path, n=60)
    for slide in ORGANS:
        write_parquet(paths["global"][slide], pd.read_parquet(paths["local"][slide]))
    one = {model: {"lung_h": files["lung_h"]} for model, files in paths.items()}
    parts = {part: tmp_path / f"{part}.csv" for part in GATE_PARTS}
    describe_gate_of_cohorts(one, parts, tmp_path / "s.json", mpp=0.25, square_um=150)
    assert read_json(tmp_path / "s.json")["cohorts"]["all"]["auroc"] is None
    draw_gate(parts, tmp_path / "s.json", [tmp_path / "g.png"], tmp_path / "g.csv", synthetic=False, **LOOK)
    inputs = (tmp_path / "s.json", parts["by_truth"], parts["by_class"])
    lay_out(tables.gate(*inputs), tmp_path / "t")
    assert next(row for row in rows(tmp_path / "t.md") if row[0] == "lung h")[5] == "–"
