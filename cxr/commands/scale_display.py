"""How a change of the stream's shards is shown, by itself and around a run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cxr.commands.terminal import notes
from cxr.errors import InputError
from cxr.scaling import CHANGES, Shards, scale, shards, steps
from cxr.stack import Stack
from cxr.words import counted


def scale_stream(stack: Stack, target: int, after_a_stop: str) -> tuple[Shards, Shards]:
    """Change the shards and show each step. Returns what the stream had before and what it has now.

    Stopped by Ctrl-C, it says where, and what to do. Raises what `scale` raises.
    """
    states = []
    try:
        for state in scale(stack, target):
            states.append(state)
            if len(states) > 1:
                _say(f"[green]✓[/] {counted(state.number, 'shard')}")
            elif way := steps(state.number, target):
                _say(
                    f"Changing the stream, {' → '.join(map(str, [state.number, *way]))} shards: some minutes"
                )
    except SystemExit:
        at = (
            f"at {counted(states[-1].number, 'shard')}, or with the next step"
            if states
            else "before it began"
        )
        _say(f"Stopped {at}: {after_a_stop}")
        raise
    return states[0], states[-1]


@contextmanager
def scaled(stack: Stack, target: int) -> Iterator[None]:
    """Give the stream so many shards for the block, and then as many as it had, however the block ends.

    Raises InputError if Kinesis would refuse a step later today, as far as that is known.
    """
    before = shards(stack)
    if target <= before.number:
        _say(f"The stream has {counted(before.number, 'shard')} already")
        yield
        return
    needed = len(steps(before.number, target)) + len(steps(target, before.number))
    if before.left is not None and needed > before.left:
        raise InputError(
            f"--shards {target}: to {target} shards and back to {before.number} takes {needed} changes. "
            f"{changes_left(before)} Give fewer shards, or none"
        )
    back = f"cxr scale {before.number}"
    try:
        scale_stream(stack, target, "the run was not started")
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by the first Ctrl-C, which led here
            signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
        try:
            scale_stream(stack, before.number, f"`{back}` continues")
        except Exception:
            _say(f"The stream was not set back: run `{back}`. `cxr doctor` reminds you")
            raise


def changes_left(found: Shards) -> str:
    """How often the stream can still be changed, in a sentence."""
    if found.left is None:
        return f"Kinesis takes {CHANGES} changes in 24 hours; how many are left is not known."
    more = f", and one more from {found.more_at:%Y-%m-%d %H:%M} UTC on" if found.more_at else ""
    return f"Of the {CHANGES} changes that Kinesis takes in 24 hours, at most {found.left} are left{more}."


def _say(text: str) -> None:
    """Print it. A terminal that is gone stops no change."""
    with suppress(OSError):
        notes.print(text, soft_wrap=True)
