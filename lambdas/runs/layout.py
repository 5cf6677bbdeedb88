"""Where the items of a run are in the DynamoDB table.

pk                    sk          one item for
RUN                   <run>       each run: its uid, source, model, labels, settings, state, expected images
RUN#<run>             COUNT#<n>   each counter: its share of the counts; the sum over all counters counts
RUN#<run>#<00..3f>    <key>       each prediction

A partition takes 1,000 writes a second (DynamoDB guide, bp-partition-key-design), hence the 64. To change
PARTITIONS on a deployed stack would hide the predictions that are there.
"""

import hashlib

PARTITIONS = 64  # of a run's predictions
COUNTERS = 16  # of a run; they are made in one transaction with its item
RUNS = "RUN"  # the partition of all runs' items
PREDICTION_KEYS = "RUN#*#*"  # what the partition key of every prediction matches, for IAM

Key = dict[str, str]


def run_key(run_id: str) -> Key:
    """The key of a run's item."""
    return {"pk": RUNS, "sk": run_id}


def counters_partition(run_id: str) -> str:
    """The partition that holds all counters of a run."""
    return f"RUN#{run_id}"


def counter_key(run_id: str, number: int) -> Key:
    """The key of one counter, from 0 to COUNTERS - 1."""
    return {"pk": counters_partition(run_id), "sk": f"COUNT#{number:02d}"}


def partitions(run_id: str) -> list[str]:
    """The partitions that hold the predictions of a run."""
    return [f"RUN#{run_id}#{number:02x}" for number in range(PARTITIONS)]


def prediction_key(run_id: str, key: str) -> Key:
    """The key of the prediction for one S3 key. The hash of the S3 key chooses the partition."""
    number = hashlib.sha256(key.encode()).digest()[0] % PARTITIONS
    return {"pk": f"RUN#{run_id}#{number:02x}", "sk": key}
