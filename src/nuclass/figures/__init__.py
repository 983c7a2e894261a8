"""Drawings of numbers that are already computed. One module a figure; nothing is calculated here but positions."""
