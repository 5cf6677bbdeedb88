"""How much memory this process has held at most."""

import re
import resource
import sys
from pathlib import Path


def peak_mb() -> float:
    """In MB. Raises OSError where Linux has no /proc."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # Not ru_maxrss, which begins with what the parent held when it forked.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**10
