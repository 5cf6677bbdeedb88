"""A CSV file with a header, checked as it is read."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from cxr.errors import InputError


class CsvTable:
    """A CSV file in UTF-8 with a header and at least one row. Every method raises InputError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                self.columns = [name.strip() for name in reader.fieldnames or ()]
                reader.fieldnames = self.columns
                self._rows = [(reader.line_num, row) for row in reader]
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: expected a CSV file in UTF-8 ({error})") from None
        if not self._rows:
            raise InputError(f"{path}: expected a CSV file with a header and at least one row")

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number in the file and columns, row by row."""
        for line, row in self._rows:
            if len(row) != len(self.columns) or None in row.values():
                raise InputError(f"{self.path}, line {line}: expected {len(self.columns)} columns")
            yield line, {name: value.strip() for name, value in row.items()}

    def require(self, *columns: str) -> None:
        """Raise InputError unless the file has these columns."""
        for column in columns:
            if column not in self.columns:
                raise InputError(f"{self.path}: expected a column {column}; {self.found}")

    def first(self, columns: Iterable[str]) -> str | None:
        """The first of these columns that the file has."""
        return next((column for column in columns if column in self.columns), None)

    @property
    def found(self) -> str:
        """The columns of the file, for a message."""
        return f"its columns are {', '.join(self.columns)}"
