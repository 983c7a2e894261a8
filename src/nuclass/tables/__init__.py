"""Lay out numbers that are already computed, as CSV for machines, Markdown and LaTeX for people."""
