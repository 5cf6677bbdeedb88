"""Figures into docs/reliability.md, by the command that has measured them."""

from collections.abc import Iterable
from datetime import date
from pathlib import Path

from cxr.errors import Failed
from cxr.files import whole_file


def place(path: Path, name: str) -> tuple[str, str]:
    """A Markdown file up to its line `<!-- name -->`, and from its line `<!-- /name -->` on.

    Raises Failed where they are not.
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


def put_table(path: Path, name: str, command: str, rows: Iterable[tuple[str, str]]) -> None:
    """Put what a command came to into its place in a Markdown file. Raises Failed and OSError."""
    before, after = place(path, name)
    lines = "".join(f"| {what} | {value} |\n" for what, value in rows)
    with whole_file(path) as part:
        part.write_text(
            f"{before}\n`{command}` on {date.today()}:\n\n| | |\n|---|---:|\n{lines}{after}", encoding="utf-8"
        )
