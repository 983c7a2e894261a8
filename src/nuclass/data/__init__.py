"""From the files of the earlier stages to batches: cells, windows, features, vocabularies, the funnel.

The names below are imported when first used, so that reading a table does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuclass.data.cells import load_cells
    from nuclass.data.datasets import InMemoryWindows, WindowDataset, choose_dataset
    from nuclass.data.feature_cache import cache_features
    from nuclass.data.features import FeatureKey, read_features, read_key, write_features
    from nuclass.data.funnel import funnel_table
    from nuclass.data.loaders import BatchLoader, BlockBatchSampler, balanced_weights, make_loader
    from nuclass.data.modules import GateData, GlobalData, Loading, LocalData
    from nuclass.data.study import Study
    from nuclass.data.vocabulary import Vocabulary

_HOME = {
    "load_cells": "cells",
    "InMemoryWindows": "datasets",
    "WindowDataset": "datasets",
    "choose_dataset": "datasets",
    "cache_features": "feature_cache",
    "FeatureKey": "features",
    "read_features": "features",
    "read_key": "features",
    "write_features": "features",
    "funnel_table": "funnel",
    "BatchLoader": "loaders",
    "BlockBatchSampler": "loaders",
    "balanced_weights": "loaders",
    "make_loader": "loaders",
    "GateData": "modules",
    "GlobalData": "modules",
    "Loading": "modules",
    "LocalData": "modules",
    "Study": "study",
    "Vocabulary": "vocabulary",
}

__all__ = [
    "BatchLoader",
    "BlockBatchSampler",
    "FeatureKey",
    "GateData",
    "GlobalData",
    "InMemoryWindows",
    "Loading",
    "LocalData",
    "Study",
    "Vocabulary",
    "WindowDataset",
    "balanced_weights",
    "cache_features",
    "choose_dataset",
    "funnel_table",
    "load_cells",
    "make_loader",
    "read_features",
    "read_key",
    "write_features",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
