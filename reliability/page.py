"""Figures into docs/reliability.md, by the command that has measured them."""

from collections.abc import Iterable
from datetime import date
from pathlib import Path

from cxr.errors import Failed
from cxr.files import whole_file


def put_table(path: Path, name: str, command: str, rows: Iterable[tuple[str, str]]) -> None:
    """Put what a command came to between the lines `<!-- name -->` and `<!-- /name -->` of a Markdown file.

    Raises Failed where they are not, and OSError.
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, start, rest = path.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not (start and end):
        raise Failed(f"{path}: expected a line {first} and, after it, a line {last}")
    lines = "".join(f"| {what} | {value} |\n" for what, value in rows)
    with whole_file(path) as part:
        part.write_text(
            f"{before}{first}\n`{command}` on {date.today()}:\n\n| | |\n|---|---:|\n{lines}{last}{after}",
            encoding="utf-8",
        )
