"""Reading files of torch.save that were written by others: tensors and plain values come out, no code runs.

To be given to ``torch.load`` as its ``pickle_module``.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

_TORCH = {
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
}
_NAMESPACES = {"Namespace", "SimpleNamespace", "AttributeDict"}
_NAMESPACE_MODULES = {
    "argparse",
    "types",
    "lightning.fabric.utilities.data",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
}
_PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}


class ForbiddenError(pickle.UnpicklingError):
    """The file names an object that is neither a tensor nor a plain value."""


class Bag(dict[str, Any]):
    """A namespace of the file as a dictionary."""

    def __setstate__(self, state: Any) -> None:
        """Take the attributes."""
        if isinstance(state, dict):
            self.update(state)


def _joined(*parts: str) -> str:
    return "/".join(map(str, parts))


class Unpickler(pickle.Unpickler):
    """Admits tensors, dictionaries, lists and plain values; namespaces become dictionaries, paths become text."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the file stands for.

        Raises
        ------
        ForbiddenError
            For anything else than the above; the name is in the message.
        """
        if (module, name) in _TORCH or (module == "torch" and self._is_dtype(name)):
            return super().find_class(module, name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in _NAMESPACE_MODULES and name in _NAMESPACES:
            return Bag
        if module.split(".")[0] == "pathlib" and name in _PATHS:
            return _joined
        raise ForbiddenError(f"{module}.{name} is neither a tensor nor a plain value")

    @staticmethod
    def _is_dtype(name: str) -> bool:
        import torch

        return isinstance(getattr(torch, name, None), torch.dtype)


def load(file: Any, **options: Any) -> Any:
    """Read one object."""
    return Unpickler(file, **options).load()
