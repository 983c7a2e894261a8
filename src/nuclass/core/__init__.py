"""Errors, logging, progress, files, names: what every other package stands on."""
