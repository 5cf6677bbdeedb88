"""What a person sees while a model is trained: a bar in a terminal, and a line for all that is done."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Teller:
    """Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Teller":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays, after the seconds since the start."""
        line = f"{time.monotonic() - self._began:5.0f} s  {text}"
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def at(self, what: str, done: int, total: int) -> None:
        """How far it is."""
        self._bar.update(self._task, description=what, completed=done, total=total)
