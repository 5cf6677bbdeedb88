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
            # Only click's usage errors have one, and typer has no public name for these errors.
            context = getattr(error, "ctx", None)
            if not context:
                raise
            if type(error).__name__ != "NoArgsIsHelpError":  # which has printed the help already
                path = f"cxr {context.command_path.partition(' ')[2]}".rstrip()  # however it was started
                text = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
                for found, plain in PLAIN.items():
                    text = text.replace(found, plain)
                print_plainly(f"Error: {text}; `{path} --help` shows what it takes")
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)
