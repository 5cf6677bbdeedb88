"""Runs a benchmark in a new process, so that imports and memory of other benchmarks do not count."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from cxr import PROJECT

TRAINING_PYTHON = PROJECT / ".venv-training" / "bin" / "python"


def run_json(command: list[str], environment: Mapping[str, str], stdin: str = "") -> Any:
    """The value in the last line that a command prints, which is JSON.

    `environment` is added to that of this process. Raises RuntimeError, with what the command wrote to its
    standard error, if it fails.
    """
    done = subprocess.run(  # noqa: S603 - our own modules
        command,
        cwd=PROJECT,
        env={**os.environ, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
