"""Pulls the newest base of the classifier's image, and prints the setting that pins it: `make base-image`."""

import argparse
import re
import subprocess
import sys

from stacks.image_context import DOCKERFILE, PROJECT
from stacks.settings_file import line


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the setting that pins the newest base image.")
    parser.add_argument("--base", default=default_base(), help="its name; default: as the Dockerfile says")
    base = parser.parse_args().base
    print(line("baseImage", f"{base}@{newest_digest(base)}"))


def default_base() -> str:
    """The name that the Dockerfile builds on by default."""
    (name,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", (PROJECT / DOCKERFILE).read_text(), re.MULTILINE)
    return str(name)


def newest_digest(base: str) -> str:
    """The digest that the image registry has for a name now. Exits if Docker fails.

    For a base of several architectures it is that of their index, so it serves them all.
    """
    pull = ["docker", "pull", "--quiet", base]
    inspect = ["docker", "image", "inspect", '--format={{join .RepoDigests " "}}', base]
    try:
        subprocess.run(pull, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ours
        found = subprocess.run(inspect, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - ours
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"make base-image: Docker did not pull {base} ({error}); is it installed and running?")
    return found.split()[0].partition("@")[2]


if __name__ == "__main__":
    main()
