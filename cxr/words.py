"""Numbers in words: counts with their noun, durations and money."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number and its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: 9.5 s, 42 s, 3.1 min, 2.0 h."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.{minutes < 10:d}f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def money(dollars: float) -> str:
    """Dollars with two decimals, small amounts with four."""
    return f"${dollars:,.{2 if dollars >= 0.1 else 4}f}"
