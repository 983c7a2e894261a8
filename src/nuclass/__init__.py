"""NuClass: cell types from H&E, trained on the transcripts of Xenium.

The library knows nothing of Snakemake. Its packages, from the bottom up: ``core``, ``xenium`` and
``synthetic``, ``slides``, ``patches``/``labels``/``splits``, ``data``, ``models``, ``training``,
``evaluation`` and ``interpret``, ``figures`` and ``tables``, ``explorer``, ``apply``, ``cli``. Imports point downwards
only.

What programs of others use stands here under one name each, and is loaded when it is first named:

- :func:`predict_own` types the cells of one slide, with :class:`Options` for how it runs; :func:`read_positions` reads
  where cells lie, :func:`write_outputs` hands the result over in other formats.
- :func:`read_bundle` reads a Xenium output, :func:`open_source` an H&E image; :class:`Frames` converts between their
  coordinates, :class:`SlideStore` cuts windows of a stored slide.
- :func:`load_ontology` and :func:`load_markers` read the tables that labels rest on, :func:`export_patches` writes
  windows for other programs, :func:`simulate_slide` makes a synthetic slide.
- :func:`describe_checkpoint` tells what a trained model is, :func:`read_predictions` reads what one said.
- :class:`UserError` is raised for what a user can mend; anything else is a fault of the program.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuclass.apply.engine import Options
    from nuclass.apply.outputs import write_outputs
    from nuclass.apply.positions import read_positions
    from nuclass.apply.run import predict_own
    from nuclass.core.errors import UserError
    from nuclass.evaluation.predictions import read_predictions
    from nuclass.labels.markers import load_markers
    from nuclass.labels.ontology import load_ontology
    from nuclass.patches.export import export_patches
    from nuclass.slides.geometry import Frames
    from nuclass.slides.source import open_source
    from nuclass.slides.store import SlideStore
    from nuclass.synthetic.study import simulate_slide
    from nuclass.training.checkpoint import describe_checkpoint
    from nuclass.xenium.reader import read_bundle

__version__ = "0.1.0"
__all__ = [
    "Frames",
    "Options",
    "SlideStore",
    "UserError",
    "describe_checkpoint",
    "export_patches",
    "load_markers",
    "load_ontology",
    "open_source",
    "predict_own",
    "read_bundle",
    "read_positions",
    "read_predictions",
    "simulate_slide",
    "write_outputs",
]

_PLACES = {
    "Frames": "slides.geometry",
    "Options": "apply.engine",
    "SlideStore": "slides.store",
    "UserError": "core.errors",
    "describe_checkpoint": "training.checkpoint",
    "export_patches": "patches.export",
    "load_markers": "labels.markers",
    "load_ontology": "labels.ontology",
    "open_source": "slides.source",
    "predict_own": "apply.run",
    "read_bundle": "xenium.reader",
    "read_positions": "apply.positions",
    "read_predictions": "evaluation.predictions",
    "simulate_slide": "synthetic.study",
    "write_outputs": "apply.outputs",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _PLACES:
        raise AttributeError(f"module 'nuclass' has no attribute '{name}'")
    value = getattr(import_module(f"nuclass.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
