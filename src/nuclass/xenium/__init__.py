"""Xenium bundles: reading, alignment to the H&E image, fetching."""
