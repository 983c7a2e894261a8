"""NuClass: cell types from H&E, trained on the transcripts of Xenium.

The library knows nothing of Snakemake. Its packages, from the bottom up: ``core``, ``xenium`` and
``synthetic``, ``slides``, ``patches``/``labels``/``splits``, ``data``, ``models``, ``training``,
``evaluation`` and ``interpret``, ``figures`` and ``tables``, ``cli``. Imports point downwards only.
"""

from __future__ import annotations

__version__ = "0.1.0"
