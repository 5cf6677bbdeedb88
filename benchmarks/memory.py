"""The peak memory of this process."""

import re
import resource
import sys
from pathlib import Path


def peak_mb() -> float:
    """The most memory that this process has held, in MB. Raises OSError if Linux has no /proc."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # ru_maxrss starts with the memory of the parent process at the fork, VmHWM does not.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**10
