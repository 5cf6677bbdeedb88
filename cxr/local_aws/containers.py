"""Docker containers of a function's image, confined as Lambda confines a function."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Containers:
    """The containers that one local AWS starts from `image`."""

    image: str
    owner: str  # a name that no other local AWS on this machine has

    def command(self, variables: Mapping[str, str]) -> list[str]:
        """The command that runs one container by the image's own entry point, and ends with it.

        Only the names of `variables` are in it: Docker takes their values from the command's environment.
        """
        return [
            *("docker", "run", "--rm", "--pull=never", f"--label=cxr-local={self.owner}"),
            "--init",  # process 1 ignores SIGTERM unless it handles it, and Python does not
            "--network=host",  # local AWS and the Runtime API listen on loopback
            *("--user=1000:1000", "--read-only", "--tmpfs=/tmp"),
            *(f"--env={name}" for name in variables),
            self.image,
        ]

    def remove(self) -> None:
        """Remove the containers that are left of commands that were killed."""
        listing = ["docker", "ps", "--all", "--quiet", f"--filter=label=cxr-local={self.owner}"]
        found = subprocess.run(listing, capture_output=True, text=True).stdout.split()  # noqa: S603 - ours
        if found:
            subprocess.run(["docker", "rm", "--force", *found], capture_output=True)  # noqa: S603, S607 - ours
