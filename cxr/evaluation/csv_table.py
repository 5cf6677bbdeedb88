"""A CSV file with a header, checked as it is read."""

from __future__ import annotations

import csv
import io
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TextIO

from cxr.errors import InputError


class CsvTable:
    """A CSV file with a header and at least one row. Every method raises InputError.

    The path `-` is standard input. The file is in UTF-8, or in UTF-16 with a byte order mark. Columns are
    separated by comma, semicolon or tab. Empty rows, and empty cells behind the last column, are skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = _standard_input(sys.stdin) if path == Path("-") else path.read_bytes()
            encoding = "utf-16" if content[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
            with io.TextIOWrapper(io.BytesIO(content), encoding, newline="") as text:
                header = text.readline()
                text.seek(0)
                separator = max(",;\t", key=header.count)  # the comma, if there is none
                reader = csv.DictReader(text, strict=True, delimiter=separator)
                self.columns = [name.strip() for name in reader.fieldnames or ()]
                reader.fieldnames = self.columns
                self._rows = [(reader.line_num, row) for row in reader if any(map(_is_filled, row.values()))]
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        except UnicodeError:
            raise InputError(
                f"{path}: expected a CSV file, found another kind, or text that is not in UTF-8"
            ) from None
        except csv.Error as error:
            raise InputError(f"{path}: expected a CSV file ({error})") from None
        if self.columns[:1] and self.columns[0].startswith(("{", "[")):
            raise InputError(f"{path}: expected a CSV file, found JSON; write the results as CSV")
        if not self._rows:
            raise InputError(f"{path}: expected a CSV file with a header and at least one row")

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number in the file and columns, row by row."""
        for line, row in self._rows:
            if _is_filled(row.pop(None, None)) or len(row) != len(self.columns) or None in row.values():
                raise InputError(f"{self.path}, line {line}: expected {len(self.columns)} columns")
            yield line, {name: value.strip() for name, value in row.items()}

    def require(self, *columns: str) -> None:
        """Raise InputError unless the file has these columns."""
        for column in columns:
            if column not in self.columns:
                raise InputError(f"{self.path}: expected a column {column}; {self.found}")

    def first(self, columns: Iterable[str]) -> str | None:
        """The file's name of the first of these columns that it has. Capitals do not matter."""
        own = {name.casefold(): name for name in reversed(self.columns)}
        return next((own[name.casefold()] for name in columns if name.casefold() in own), None)

    @property
    def found(self) -> str:
        """The columns of the file, for a message."""
        return f"its columns are {', '.join(self.columns)}"


@cache
def _standard_input(stream: TextIO) -> bytes:
    """All of it. It can be read only once, and results of several labels are read several times."""
    return stream.buffer.read()


def _is_filled(cells: str | list[str] | None) -> bool:
    """Whether something is in a cell, or in one of the cells behind the last column."""
    return any(cell.strip() for cell in ([cells] if isinstance(cells, str) else cells or ()))
