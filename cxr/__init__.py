"""The operator's side of chest X-ray inference: the `cxr` command, and the libraries behind it.

In a notebook: `from cxr import Stack, start_run, wait, results`. Each name is loaded when it is first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr.errors import Failed, InputError
    from cxr.operations import Started, cancel_run, delete_run, start_run
    from cxr.result_rows import results
    from cxr.retry import Retried, retry_run
    from cxr.runs import RunStatus, Status, list_runs, status, wait
    from cxr.stack import Stack

PROJECT = Path(__file__).resolve().parents[1]
RESEARCH_ONLY = "Research use only, not for patient care."

__all__ = [
    "PROJECT",
    "RESEARCH_ONLY",
    "Failed",
    "InputError",
    "Retried",
    "RunStatus",
    "Stack",
    "Started",
    "Status",
    "cancel_run",
    "delete_run",
    "list_runs",
    "results",
    "retry_run",
    "start_run",
    "status",
    "wait",
]
_HOMES = ("errors", "stack", "runs", "result_rows", "operations", "retry")


def __getattr__(name: str) -> Any:
    for module in _HOMES if name in __all__ else ():
        found = getattr(import_module(f"{__name__}.{module}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
