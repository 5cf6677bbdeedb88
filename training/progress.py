"""What the training command shows on a terminal: a progress bar, and a line for each finished step."""

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressDisplay:
    """A context manager. The bar is shown only on a terminal. Lines are also added to the file `log`."""

    def __init__(self, console: Console, log: Path | None = None) -> None:
        self._started, self._log = time.monotonic(), log
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

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def print(self, text: str) -> None:
        """Print a line that stays, after the seconds since the start."""
        line = f"{time.monotonic() - self._started:5.0f} s  {text}"
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self._log:
            with self._log.open("a") as file:
                file.write(line + "\n")

    def show(self, step: str, done: int, total: int) -> None:
        """Show how much of a step is done."""
        self._bar.update(self._task, description=step, completed=done, total=total)
