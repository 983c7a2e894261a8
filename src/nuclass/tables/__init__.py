"""Lay out numbers that are already computed, as CSV for machines and Markdown for people."""
