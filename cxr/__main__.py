"""The entry point of `cxr`. Until its commands are loaded, Ctrl-C ends it without a traceback."""

import io
import signal
import sys


def main() -> None:
    """Load the commands and run one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal gets \u2713, and no traceback
            stream.reconfigure(errors="backslashreplace")
    from cxr.commands.app import app

    app()


if __name__ == "__main__":
    main()
