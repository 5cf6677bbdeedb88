"""Prints what stays when a stack is deleted, and the commands that delete it: `make destroy` runs it."""

import typer

from cxr.commands.terminal import console, errors_reported
from cxr.stack import Stack


def main(stack: str) -> None:
    with errors_reported():
        console.print(Stack.find(stack).on_delete, markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
