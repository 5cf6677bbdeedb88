"""`cxr doctor`: check all that a run needs."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.table import Column, Table

from cxr.commands.options import Json, StackName
from cxr.commands.terminal import console, errors_reported, shown
from stacks.config import DEFAULT_NAME

SIGNS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}


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
                line = Table.grid(Column(width=1), Column(width=12), Column(overflow="fold"), padding=(0, 1))
                line.add_row(SIGNS[finding.level], f"[bold]{finding.name}[/]", shown(finding.text))
                console.print(line)
                if finding.remedy:  # not wrapped: it may be a command to copy
                    console.print(f"{'':15}[dim]→[/] {shown(finding.remedy)}", soft_wrap=True)
        healthy = all(finding.level != "fail" for finding in found)
        if as_json:
            checks = [asdict(finding) for finding in found]
            typer.echo(json.dumps({"ok": healthy, "checks": checks}, indent=2))
        if not healthy:
            raise typer.Exit(1)
