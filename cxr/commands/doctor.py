"""`cxr doctor`: check all that a run needs."""

from __future__ import annotations

import json

import typer

from cxr.commands.options import Json, StackName
from cxr.commands.run_display import finding_document, print_finding
from cxr.commands.terminal import errors_reported
from stacks.config import DEFAULT_NAME


def doctor(stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Check credentials, stack, quotas and tools, and say what to do about each problem.

    Changes nothing. A check that these credentials may not make, or that local
    AWS does not support, is reported as such and is no failure.

    The JSON is one object: ok, and checks with name, level (ok, warn, fail),
    text and remedy.

    Ends with 0, also if it warns, and with 1 if a check failed.
    """
    from cxr.doctor import examine

    with errors_reported():
        found = []
        for finding in examine(stack):
            found.append(finding)
            if not as_json:
                print_finding(finding)
        healthy = all(finding.level != "fail" for finding in found)
        if as_json:
            checks = [finding_document(finding) for finding in found]
            typer.echo(json.dumps({"ok": healthy, "checks": checks}, indent=2))
        if not healthy:
            raise typer.Exit(1)
