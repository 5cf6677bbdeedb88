"""The job: what one side puts on the stream is what the other reads."""

import base64
from typing import Any

import pytest
from job_creator.events import Request
from runs.jobs import MAX_KEYS, Job, batches, decode, encode


def delivered(job: Job) -> dict[str, Any]:
    """The job as Lambda delivers it."""
    return {"kinesis": {"data": base64.b64encode(encode(job)["Data"]).decode()}}


@pytest.mark.parametrize("continued", [False, True])
def test_what_is_sent_is_what_is_read(continued: bool) -> None:
    job = Job("r", "u", "images", tuple(f"cxr-nih/{i}.png" for i in range(50)), continued)
    assert decode(delivered(job)) == job


def test_any_key_s3_takes() -> None:
    keys = ("é ü 漢字.png", 'quote".png', "new\nline.png", "back\\slash", "a" * 1024, "\U0001fa7b.png")
    assert decode(delivered(Job("r", "u", "images", keys))).keys == keys


def test_the_largest_job_the_stack_allows() -> None:
    job = Job("r", "u", "images", tuple(f"{i:03}{'x' * 1021}" for i in range(MAX_KEYS)))
    record = delivered(job)
    assert decode(record) == job
    assert len(record["kinesis"]["data"]) < 2**20


@pytest.mark.parametrize("run_id", ["a", "A.b_c-9", "r" * 128])
def test_any_run_id_the_job_creator_takes(run_id: str) -> None:
    assert Request.from_event({"RunId": run_id}, "p/").run_id == run_id
    assert decode(delivered(Job(run_id, "u", "images", ("k",)))).run_id == run_id


def test_no_job_is_left_out_of_the_batches() -> None:
    jobs = [Job("r", "u", "images", (f"{i}",)) for i in range(1201)]
    assert [len(records) for records in batches(jobs)] == [500, 500, 201]
