"""Prediction of slides with all three models."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.data.study import Study
from nuclass.training.predict import predict_slide
from toy_study import CLASSES, MODELS, one_slide, toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def test_predictions_follow_the_contract(trained, study, tmp_path):
    outputs = {name: tmp_path / name / "lung_h.parquet" for name in trained}
    counts = predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    assert counts == {"test": 220}
    columns = ["cell_id", "slide", "organ", "split", "x_px", "y_px", "label", "prediction", "confidence"]
    for name, path in outputs.items():
        table = pd.read_parquet(path)
        p = table[[f"prob_{c}" for c in sorted(CLASSES)]].to_numpy()
        assert list(table.columns[:9]) == columns
        assert ("gate" in table) == (name == "gate")
        assert np.allclose(p.sum(1), 1)
        assert (np.array(sorted(CLASSES))[p.argmax(1)] == table["prediction"]).all()
        with h5py.File(path.with_suffix(".h5")) as file:
            assert file["cell_id"].asstr()[:].tolist() == table["cell_id"].tolist()
            assert file["embeddings"].dtype == np.float16
            assert file["logits"].shape == (220, 3)
    mixture = pd.read_parquet(outputs["gate"])
    assert mixture["gate"].between(0, 1).all()


def test_only_unseen_cells_of_a_training_slide_are_predicted(trained, study, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    counts = predict_slide(MODELS, one_slide(study, "lung_1"), trained, outputs)
    assert set(counts) == {"val", "test"}


def test_an_organ_never_seen_is_typed_as_unknown(trained, study, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "liver_h"), trained, outputs)
    assert (pd.read_parquet(outputs["local"])["organ"] == "liver").all()


def test_training_cells_are_never_predicted(trained, study, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    data["cells"]["lung_h"] = {"train": ["l003-1", "l004-1"], "val": []}
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="used in training") as caught:
        predict_slide(
            MODELS,
            one_slide(study, "lung_h"),
            {**trained, "local": tmp_path / "best.ckpt"},
            {name: tmp_path / f"{name}.parquet" for name in trained},
        )
    assert "2 cells, the first: l003-1" in str(caught.value)
