"""The operator's side of chest X-ray inference: the `cxr` command, and what is behind it.

In a notebook: `from cxr import Stack, start_run, status, results`. What is here is loaded when it is asked
for, and calls AWS only when it is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr.errors import Failed, InputError
    from cxr.operations import Started, cancel_run, delete_run, start_run
    from cxr.retry import Retried, retry_run
    from cxr.runs import RunStatus, Status, list_runs, results, status
    from cxr.stack import Stack

RESEARCH_ONLY = "Research use only, not for patient care."

__all__ = [
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
]
_HOMES = ("errors", "stack", "runs", "operations", "retry")


def __getattr__(name: str) -> Any:
    for module in _HOMES if name in __all__ else ():
        found = getattr(import_module(f"{__name__}.{module}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
