"""Usage errors in one line."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from cxr.commands.terminal import print_plainly

# What the parser of typer says, and what a person understands.
PLAIN = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "expected a whole number",
    "Input should be a valid number, unable to parse string as a number": "expected a number",
}


class Group(TyperGroup):
    """The group of all commands. A wrong option or argument is one line, as every other error is."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line, and exit with its code."""
        if not options.get("standalone_mode", True):
            return super().main(*args, **options)
        try:
            code = super().main(*args, **options | {"standalone_mode": False})
        except typer.Abort:
            print_plainly("Error: there was no answer")
            sys.exit(1)
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer has no public name for its usage errors
                raise
            if type(error).__name__ != "NoArgsIsHelpError":  # which has printed the help already
                context = getattr(error, "ctx", None)  # missing if an option has no value
                words = context.command_path.split()[1:] if context else []
                path = " ".join(["cxr", *words])
                text = " ".join(error.format_message().split()).rstrip(".")
                for found, plain in PLAIN.items():
                    text = text.replace(found, plain)
                print_plainly(f"Error: {text}; `{path} --help` shows what it takes")
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)
