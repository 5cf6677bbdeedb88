"""Write the tables in the documentation that repeat what the code says: `make docs`.

A page marks the place of a table with a line `<!-- NAME -->` before it and a line `<!-- /NAME -->` after it.
tests/test_docs.py fails when a page and the code differ.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from aws_cdk import App
from aws_cdk.assertions import Template
from runs.codes import ErrorCode, WarningCode
from typer.main import get_command

from cxr.commands.app import app
from cxr.files import whole_file
from stacks.config import Config, context_name
from stacks.inference_stack import InferenceStack
from stacks.network import PREFIX_LISTS
from tools.audit import acknowledged
from tools.markdown import filled, table

PROJECT = Path(__file__).parents[1]


def settings() -> str:
    """Every setting with its default, what is allowed and its meaning."""
    rows = (
        (
            f"`{context_name(setting.name)}`",
            "" if setting.default is None else f"`{setting.default}`",
            setting.metadata["allowed"].replace("|", r"\|"),
            setting.metadata["doc"],
        )
        for setting in fields(Config)
    )
    return table(("setting", "default", "allowed", "meaning"), rows)


def regions() -> str:
    """The regions in which a stack with `network=isolated` can be deployed."""
    return ", ".join(f"`{region}`" for region in PREFIX_LISTS)


def alarms() -> str:
    """Every alarm, with a link to its heading in the runbook, and its meaning."""
    descriptions = (
        re.fullmatch(r"(.+) What to do: docs/runbook\.md, (\w+)\.", alarm["Properties"]["AlarmDescription"])
        for alarm in resources()
        if alarm["Type"] == "AWS::CloudWatch::Alarm"
    )
    rows = sorted((f"[{found[2]}](#{found[2].lower()})", found[1]) for found in descriptions if found)
    return table(("alarm", "means"), rows)


def resource_types() -> str:
    """What the stack consists of, with the default settings."""
    count = Counter(resource["Type"] for resource in resources())
    return table(
        ("CloudFormation type", "number"), ((f"`{kind}`", f"{n}") for kind, n in sorted(count.items()))
    )


def commands() -> str:
    """Every command of `cxr`, with a link to its heading, and the first line of its help."""

    def listed(command: Any, name: str) -> Iterator[tuple[str, str]]:
        for word, child in getattr(command, "commands", {"": None}).items():
            if child:
                yield from listed(child, f"{name} {word}")
            else:
                yield f"[`{name}`](#{name.replace(' ', '-')})", command.help.partition("\n")[0]

    return table(("command", "does"), listed(get_command(app), "cxr"))


def codes(kind: type[ErrorCode] | type[WarningCode]) -> str:
    """Every code with its meaning."""
    return table(("code", "the image"), ((f"`{code}`", code.meaning) for code in kind))


@cache
def resources() -> list[dict[str, Any]]:
    """The resources in the template of the default settings."""
    flags = json.loads((PROJECT / "cdk.json").read_text(encoding="utf-8"))["context"]
    # Every `cdk synth` checks the CDK's own rules, which takes seconds.
    app = App(context=flags, builtin_cloud_formation_validation=False)
    stack = InferenceStack(app, "ChestXray", config=Config())
    return list(Template.from_stack(stack).to_json()["Resources"].values())


def solutions() -> str:
    """The findings of cdk-nag's AwsSolutions pack that the code accepts."""
    rows = ((f"`{rule}`", f"`{resource}`", reason) for rule, resource, reason in acknowledged())
    return table(("finding", "at", "why it is accepted"), rows)


TABLES: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("docs/cli.md", "commands", commands),
    ("docs/findings.md", "solutions", solutions),
    ("docs/operations.md", "resources", resource_types),
    ("docs/results.md", "errors", partial(codes, ErrorCode)),
    ("docs/results.md", "warnings", partial(codes, WarningCode)),
    ("docs/runbook.md", "alarms", alarms),
    ("docs/settings.md", "regions", regions),
    ("docs/settings.md", "settings", settings),
)


def main() -> None:
    """Write each table into its page. Raises Failed and OSError."""
    for page, name, make in TABLES:
        path = PROJECT / page
        text = filled(path, name, f"\n{make()}\n")
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
