"""Parts of Markdown pages that a command writes."""

from collections.abc import Iterable
from datetime import date
from pathlib import Path

from cxr.errors import Failed
from cxr.files import whole_file


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table. Every row has as many cells as the header."""
    names = tuple(header)
    lines = (names, ("---",) * len(names), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def place(path: Path, name: str) -> tuple[str, str]:
    """The page up to its line `<!-- name -->`, and the page from its line `<!-- /name -->` on.

    Raises Failed if the page or one of the lines is missing.
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        before, start, rest = path.read_text(encoding="utf-8").partition(first)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}; expected a page to put a table into") from None
    _, end, after = rest.partition(last)
    if not (start and end):
        raise Failed(f"{path}: expected a line {first} and, after it, a line {last}")
    return before + start, end + after


def filled(path: Path, name: str, content: str) -> str:
    """The text of the page with `content` in the place `name`. Raises Failed."""
    before, after = place(path, name)
    return f"{before}\n{content}\n{after}"


def put_table(path: Path, name: str, command: str, rows: Iterable[tuple[str, str]]) -> None:
    """Put what a command measured into its place in a page. Raises Failed and OSError."""
    lines = "".join(f"| {what} | {value} |\n" for what, value in rows)
    text = filled(path, name, f"`{command}` on {date.today()}:\n\n| | |\n|---|---:|\n{lines}".rstrip("\n"))
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
