"""The entry point of `cxr`. Until its commands are loaded, Ctrl-C ends it without a traceback."""

import signal


def main() -> None:
    """Load the commands and run one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cxr.commands.app import app

    app()


if __name__ == "__main__":
    main()
