"""What a wrong command line is answered with."""

import pytest
from typer.testing import CliRunner

from cxr.commands.app import app


@pytest.mark.parametrize(
    ("line", "error"),
    [
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


@pytest.mark.parametrize("line", ["", "local", "model"])
def test_without_a_command_the_help_is_printed_once(line: str) -> None:
    done = CliRunner().invoke(app, line.split())
    assert (done.exit_code, done.output.count("Usage")) == (2, 1)
