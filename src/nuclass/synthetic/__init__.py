"""The synthetic study: tissue with a known truth, observed as Xenium bundles with their H&E image."""

from __future__ import annotations

from nuclass.synthetic.study import simulate_slide

__all__ = ["simulate_slide"]
