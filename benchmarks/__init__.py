"""Measures the project beside the original it replaces: `make bench`."""

NIH_IMAGES = 113_178  # keys in the original's index of NIH ChestX-ray14
