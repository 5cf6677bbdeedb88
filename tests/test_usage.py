"""What a wrong command line is answered with."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxr.commands.app import app
from cxr.commands.terminal import for_stack, use_stack
from stacks.config import DEFAULT_NAME


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("run x --count", "Option '--count' requires an argument; `cxr --help` shows what it takes"),
        ("runs --stack", "Option '--stack' requires an argument; `cxr --help` shows what it takes"),
        ("local up -c", "Option '-c' requires an argument; `cxr --help` shows what it takes"),
        ("run x --watch=1", "Option '--watch' does not take a value; `cxr --help` shows what it takes"),
        ("local up -c memory", "-c memory: expected name=value, for example shards=20"),
        ("local up -c shard=1", "-c shard: no such setting, expected shards"),
        ("run", "Missing argument 'RUN'; `cxr run --help` shows what it takes"),
        ("nonsense", "No such command 'nonsense'; `cxr --help` shows what it takes"),
        (
            "results a --format xml",
            "Invalid value for '--format': 'xml' is not one of 'csv', 'jsonl', 'json'; `cxr results --help` "
            "shows what it takes",
        ),
        (
            "plan --images 1e5",
            "Invalid value for '--images': expected a whole number; `cxr plan --help` shows what it takes",
        ),
        (
            "results a --min-score low",
            "Invalid value for '--min-score': expected a number; `cxr results --help` shows what it takes",
        ),
    ],
)
def test_a_usage_error_is_one_line(line: str, error: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"Error: {error}\n")


def test_a_demo_of_no_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("Key")
    done = CliRunner().invoke(app, ["local", "demo", "--images", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (
        2,
        f"Error: {tmp_path}: expected PNG, JPEG or DICOM files in it, found none\n",
    )


def test_messages_name_commands_for_the_stack_that_is_worked_on() -> None:
    text = "`cxr retry a --failed X` or `npx cdk deploy`; `cxr local up`, `cxr plan`"
    try:
        use_stack("Other")
        assert for_stack(text) == (
            "`cxr retry a --failed X --stack Other` or `npx cdk deploy -c stackName=Other`; `cxr local up`, "
            "`cxr plan`"
        )
        use_stack(DEFAULT_NAME)
        assert for_stack(text) == text
    finally:
        use_stack(DEFAULT_NAME)


@pytest.mark.parametrize("line", ["", "local", "model"])
def test_without_a_command_the_help_is_printed_once(line: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert (done.exit_code, done.output.count("Usage")) == (2, 1)
