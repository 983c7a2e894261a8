from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import (
    calinski_harabasz_score,
    davies_bouldin_score,
    f1_score,
    roc_auc_score,
    silhouette_score,
)
from sklearn.preprocessing import normalize

from fake_study import CLASSES, write_predictions
from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.core.readings import EMBEDDING_METRICS
from nuclass.evaluation.embedding_space import (
    ORGAN_METRICS,
    compare_embeddings,
    cross_organ_nn1,
    nearest_labels,
    organ_identifiability,
    organ_leakage,
    same_organ_nn1,
)
from nuclass.evaluation.metrics import ece
from nuclass.evaluation.predictions import read_predictions

OPTIONS = {"subset": 7000, "seed": 42, "draws": 50, "mpp": 0.25, "block_um": 150}
# Four corners of a plane; organs lie 1 apart within a class, classes 10 apart.
POINTS = np.array([[0, 0], [0.1, 0], [1, 0], [1.2, 0], [10, 0], [10.3, 0], [11, 0], [11.4, 0]], dtype=np.float32)
Y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
ORGANS = np.array(["l", "l", "o", "o", "l", "l", "o", "o"])


def test_nearest_neighbours_by_hand() -> None:
    np.testing.assert_array_equal(nearest_labels(POINTS, np.arange(8)), [1, 0, 3, 2, 5, 4, 7, 6])
    assert same_organ_nn1(POINTS, Y, ORGANS) == 1
    assert cross_organ_nn1(POINTS, Y, ORGANS) == 1
    assert organ_identifiability(POINTS, ORGANS, neighbours=1) == 1
    # With three neighbours one of the own organ and two of the other are nearest.
    assert organ_identifiability(POINTS, ORGANS, neighbours=3) == 0
    swapped = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    assert cross_organ_nn1(POINTS, swapped, ORGANS) == 0
    assert same_organ_nn1(POINTS, swapped, ORGANS) == 1


def test_cross_organ_leaves_out_classes_of_one_organ() -> None:
    y = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    # Class 1 is only in l, class 2 only in o: the four cells of class 0 count.
    assert cross_organ_nn1(POINTS, y, ORGANS) == 1
    assert np.isnan(cross_organ_nn1(POINTS[4:], y[4:], ORGANS[4:]))


def test_leakage_by_hand() -> None:
    # Centroids: class 0: 0.05 and 1.1; class 1: 10.15 and 11.2; classes: 0.575 and 10.675.
    found = organ_leakage(POINTS, Y, ORGANS, min_cells=2)
    assert found == pytest.approx(1.05 / 10.1, rel=1e-5)
    assert np.isnan(organ_leakage(POINTS, Y, ORGANS, min_cells=3))
    assert np.isnan(organ_leakage(POINTS, np.zeros(8, int), ORGANS, min_cells=2))
    assert np.isnan(organ_identifiability(POINTS, np.full(8, "l"), 1))
    assert np.isnan(organ_identifiability(POINTS[:4], ORGANS[:4], 5))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("study")
    paths = write_predictions(folder, n=250)
    shapes = {"local": 0.0, "global": 3.0}
    for model, organ_pull in shapes.items():
        for number, path in enumerate(paths[model].values()):
            table = pd.read_parquet(path)
            rng = np.random.default_rng([number, len(model)])
            values = rng.normal(size=(len(table), 20))
            values[np.arange(len(table)), [CLASSES.index(c) for c in table["label"]]] += 4
            values[:, 14 + number] += organ_pull
            with h5py.File(path.with_suffix(".h5"), "a") as h5:
                del h5["embeddings"]
                h5["embeddings"] = values.astype(np.float16)
    return paths


def files(study: dict[str, dict[str, Path]], *slides: str) -> dict[str, list[Path]]:
    return {m: [p for s, p in study[m].items() if not slides or s in slides] for m in ("local", "global")}


def test_metrics_are_those_of_scikit_learn(study: dict[str, dict[str, Path]]) -> None:
    found = compare_embeddings(files(study), **OPTIONS)
    assert found["n_cells"] == 750
    for model in ("local", "global"):
        one = read_predictions(files(study)[model], arrays=True)
        x, y, values = normalize(one.embeddings.astype(np.float32)), one.y, found["models"][model]
        assert set(values) == set(EMBEDDING_METRICS)
        assert values["silhouette"] == pytest.approx(silhouette_score(x, y, metric="cosine"), abs=1e-5)
        assert values["calinski_harabasz"] == pytest.approx(calinski_harabasz_score(x, y), rel=1e-4)
        assert values["davies_bouldin"] == pytest.approx(davies_bouldin_score(x, y), rel=1e-4)
        assert values["accuracy"] == pytest.approx((one.predicted == y).mean())
        present = np.unique(y)
        assert values["macro_f1"] == pytest.approx(f1_score(y, one.predicted, labels=present, average="macro"))
        assert values["auroc_macro"] == pytest.approx(
            np.mean([roc_auc_score(y == i, one.probs[:, i]) for i in present])
        )
        assert values["ece"] == pytest.approx(ece(y, one.probs, bins=10))
        distance = cdist(x, x)
        np.fill_diagonal(distance, np.inf)
        organs = one.table["organ"].to_numpy()
        assert values["nn1"] == pytest.approx((y[distance.argmin(1)] == y).mean(), abs=0.005)
        other = np.where(organs[:, None] == organs, np.inf, distance)
        possible = np.array([np.isin(y[i], y[organs != organs[i]]) for i in range(len(y))])
        assert values["nn1_cross_organ"] == pytest.approx((y[other.argmin(1)] == y)[possible].mean(), abs=0.005)
        nearest = organs[np.argsort(distance, axis=1)[:, :5]]
        votes = np.stack([(nearest == o).sum(axis=1) for o in np.unique(organs)], axis=1)
        assert values["organ_identifiability"] == pytest.approx(
            (np.unique(organs)[votes.argmax(axis=1)] == organs).mean(), abs=0.005
        )


def test_a_space_that_knows_the_organ_is_told(study: dict[str, dict[str, Path]]) -> None:
    found = compare_embeddings(files(study), **OPTIONS)["models"]
    assert found["global"]["organ_identifiability"] > found["local"]["organ_identifiability"] + 0.2
    assert found["global"]["organ_leakage"] > 1.5 * found["local"]["organ_leakage"]
    assert found["global"]["nn1_cross_organ"] < found["local"]["nn1_cross_organ"]


def test_one_organ_gives_nan_and_says_so(study: dict[str, dict[str, Path]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        found = compare_embeddings(files(study, "lung_h"), **OPTIONS)
    for values in found["models"].values():
        assert all(np.isnan(values[name]) for name in ORGAN_METRICS)
        assert values["nn1_same_organ"] == values["nn1"]
        assert np.isfinite(values["silhouette"])
    assert "one organ (lung)" in found["notes"][0]
    assert "one organ (lung)" in caplog.text


def test_subset_is_the_same_for_each_model_whatever_the_order(study: dict[str, dict[str, Path]]) -> None:
    options = OPTIONS | {"subset": 100}
    found = compare_embeddings(files(study), **options)
    assert found["n_cells"] == 100
    turned = {m: paths[::-1] for m, paths in files(study).items()}
    assert compare_embeddings(turned, **options)["models"] == found["models"]
    assert compare_embeddings(files(study), **(options | {"seed": 1}))["models"] != found["models"]
    same = compare_embeddings({"a": files(study)["local"], "b": files(study)["local"]}, **options)
    assert same["models"]["a"] == same["models"]["b"]
    assert same["differences"]["a-b"]["accuracy"] == {"value": 0, "low": 0, "high": 0}


def test_differences_are_the_first_minus_the_others(study: dict[str, dict[str, Path]]) -> None:
    found = compare_embeddings(files(study), **OPTIONS)
    difference = found["differences"]["local-global"]
    for metric in ("accuracy", "macro_f1"):
        values = [found["models"][m][metric] for m in ("local", "global")]
        assert difference[metric]["value"] == pytest.approx(values[0] - values[1], abs=1e-6)
        assert difference[metric]["low"] <= difference[metric]["value"] <= difference[metric]["high"]


def test_classes_that_one_model_lacks_are_left_out(study: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    mine = []
    for path in files(study)["global"]:
        table = pd.read_parquet(path)
        table = table.drop(columns="prob_T_Cell")
        columns = [c for c in table if c.startswith("prob_")]
        table[columns] = table[columns].div(table[columns].sum(axis=1), axis=0)
        write_parquet(tmp_path / path.name, table)
        (tmp_path / path.name).with_suffix(".h5").write_bytes(path.with_suffix(".h5").read_bytes())
        mine.append(tmp_path / path.name)
    found = compare_embeddings({"local": files(study)["local"], "other": mine}, **OPTIONS)
    assert "T_Cell" not in found["classes"]
    tables = [pd.read_parquet(p) for p in mine]
    assert found["n_cells"] == sum((t["label"] != "T_Cell").sum() for t in tables)
    one = read_predictions(files(study)["local"])
    kept = [i for i, c in enumerate(one.classes) if c != "T_Cell"]
    rows = one.y != one.classes.index("T_Cell")
    expected = np.array(kept)[one.probs[:, kept].argmax(axis=1)][rows] == one.y[rows]
    assert found["models"]["local"]["accuracy"] == pytest.approx(expected.mean())
    scaled = one.probs[:, kept][rows]
    scaled /= scaled.sum(axis=1, keepdims=True)
    place = np.array([kept.index(i) for i in one.y[rows]])
    assert found["models"]["local"]["ece"] == pytest.approx(ece(place, scaled, bins=10))
    assert found["models"]["local"]["ece"] != pytest.approx(ece(place, one.probs[:, kept][rows], bins=10))


def copy_of(paths: list[Path], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for path in paths:
        for file in (path, path.with_suffix(".h5")):
            (folder / file.name).write_bytes(file.read_bytes())
    return [folder / path.name for path in paths]


def test_bad_inputs(study: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    local = files(study)["local"]
    with pytest.raises(UserError, match="different cells"):
        compare_embeddings({"local": local, "other": files(study)["global"][:2]}, **OPTIONS)
    with pytest.raises(UserError, match="Nothing to compare"):
        compare_embeddings({}, **OPTIONS)
    with pytest.raises(UserError, match="missing"):
        compare_embeddings({"local": [tmp_path / "none.parquet"]}, **OPTIONS)
    broken = copy_of(local, tmp_path / "nan")
    with h5py.File(broken[0].with_suffix(".h5"), "a") as h5:
        h5["embeddings"][3] = np.nan
    with pytest.raises(UserError, match="not finite, or zero"):
        compare_embeddings({"local": broken}, **OPTIONS)
    short = copy_of(local, tmp_path / "short")
    with h5py.File(short[0].with_suffix(".h5"), "a") as h5:
        ids = h5["cell_id"][:]
        del h5["cell_id"]
        h5["cell_id"] = np.where(np.arange(len(ids)) == 5, b"gone", ids)
    with pytest.raises(UserError, match="1 cells have no embedding"):
        compare_embeddings({"local": short}, **OPTIONS)
    relabelled = copy_of(local, tmp_path / "labels")
    table = pd.read_parquet(relabelled[0])
    table.loc[0, "label"] = "T_Cell" if table.loc[0, "label"] != "T_Cell" else "B_Cell"
    write_parquet(relabelled[0], table)
    with pytest.raises(UserError, match="labels of the same cells"):
        compare_embeddings({"local": local, "other": relabelled}, **OPTIONS)


def test_embeddings_follow_their_cells_not_their_order(study: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    local = files(study)["local"]
    before = compare_embeddings({"local": local}, **OPTIONS)
    shuffled = copy_of(local, tmp_path / "order")
    for path in shuffled:
        write_parquet(path, pd.read_parquet(path).sample(frac=1, random_state=1))
    assert compare_embeddings({"local": shuffled}, **OPTIONS)["models"] == before["models"]
    for path in shuffled:
        with h5py.File(path.with_suffix(".h5"), "a") as h5:
            order = np.random.default_rng(2).permutation(len(h5["cell_id"]))
            for name in ("cell_id", "embeddings", "logits"):
                values = h5[name][:][order]
                del h5[name]
                h5[name] = values
    assert compare_embeddings({"local": shuffled}, **OPTIONS)["models"] == before["models"]
