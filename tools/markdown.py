"""Parts of Markdown pages that a command writes."""

from collections.abc import Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table. Every row has as many cells as the header."""
    names = tuple(header)
    lines = (names, ("---",) * len(names), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
