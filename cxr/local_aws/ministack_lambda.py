"""Functions of MiniStack whose errors have their type.

MiniStack answers every error of a zip function with the errorType Runtime.HandlerError. On AWS it is the name
of the exception's class (Lambda guide, python-exceptions).
"""

from __future__ import annotations

import re
from typing import Any

from ministack.services import lambda_svc  # type: ignore[import-untyped]

_execute = lambda_svc._execute_function_warm


def install() -> None:
    """Change MiniStack."""
    lambda_svc._execute_function_warm = _execute_with_error_types


def _execute_with_error_types(function: dict[str, Any], event: Any) -> dict[str, Any]:
    answer: dict[str, Any] = _execute(function, event)
    error = answer.get("body")
    if answer.get("error") and isinstance(error, dict):
        message = re.escape(str(error.get("errorMessage")).partition("\n")[0])
        raised = re.search(rf"^(?:\w+\.)*(\w+): {message}$", str(answer.get("log")), re.MULTILINE)
        if raised:  # the last line of a traceback
            error["errorType"] = raised[1]
    return answer
