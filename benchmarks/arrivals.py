"""Measures arrivals on local AWS: how soon after its upload an image has its prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runs.predictions import outcomes
from runs.table import RunTable

from cxr.arrivals import delay, today
from cxr.local_aws.local_aws import LocalAws

PAUSE = 1  # seconds between two uploads
TIMEOUT = 120  # seconds


def measure(folder: Path, files: Sequence[Path], show_progress: Callable[[str], object]) -> dict[str, Any]:
    """The median and the worst seconds from the upload of these files to their predictions.

    Raises TimeoutError if they have none after TIMEOUT. At midnight (UTC) the images of two days would be
    counted apart, and it raises this, too.
    """
    with LocalAws() as aws:
        show_progress("arrivals: deploying")
        stack = aws.deploy("arrivals=on", "data=destroy")
        table, run, s3 = RunTable(aws.client("dynamodb"), stack["TableName"]), today(), aws.client("s3")
        # The first one starts the functions.
        for number, file in enumerate([files[0], *files]):
            show_progress(f"arrivals: upload {number}/{len(files)}")
            key = f"{stack['KeyPrefix']}{number}/{file.as_posix()}"
            s3.upload_file(str(folder / file), stack["ImagesBucketName"], key)
            if number == 0:
                _wait_for(table, run, 1)
            time.sleep(PAUSE)
        _wait_for(table, run, 1 + len(files))
        found = delay(each for each in table.predictions(run) if f"{stack['KeyPrefix']}0/" not in each.key)
    assert found  # noqa: S101 - they have their predictions
    return {"images": len(files), **asdict(found)}


def _wait_for(table: RunTable, run: str, images: int) -> None:
    until = time.monotonic() + TIMEOUT
    while outcomes(table.counts(run)) < images:
        if time.monotonic() > until:
            raise TimeoutError(f"{images} images that arrived have no prediction after {TIMEOUT} s")
        time.sleep(0.5)
