"""Measures the project beside the original it replaces: `make bench`."""

NIH_IMAGES = 113_178  # keys in the original's index of NIH ChestX-ray14


def rounds(repeats: int) -> list[bool]:
    """The rounds of a benchmark, and whether each counts: all but a first one, which warms up.

    A single repeat has none before it: it only tests that the benchmark runs.
    """
    return [True] if repeats == 1 else [False, *[True] * repeats]
