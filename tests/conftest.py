"""A mocked AWS with the stack's resources, and real X-rays."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.kinesis.models import KinesisBackend
from permissions import Call, watched
from support import BUCKET, FAILURES, STREAM, TABLE, XRAYS

from cxr.local_aws.processes import STOP_SIGNALS
from reliability.table import create_table


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--image", metavar="NAME", help="test this image of the classifier, too, in containers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the tests of the image without one; puts the test that looks back on all others behind them."""
    if not config.getoption("--image"):
        for item in items:
            if item.get_closest_marker("container"):
                item.add_marker(pytest.mark.skip("needs Docker and --image NAME, which `make image` builds"))
    items.sort(key=lambda item: item.name == "test_what_handlers_asked_for_in_all_other_tests_is_allowed")


@pytest.fixture(scope="session")
def suite_calls() -> dict[Call, str]:
    """What handlers have asked AWS for in the tests so far, and the first test that they did it in."""
    return {}


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """A command run in this process sets its own signal handlers."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def xrays() -> list[Path]:
    """Forty full-size NIH chest X-rays."""
    files = sorted(XRAYS.rglob("*.png"))
    if not files:
        pytest.skip(f"needs the NIH X-rays in {XRAYS}")
    return files


@pytest.fixture
def aws(
    monkeypatch: pytest.MonkeyPatch, suite_calls: dict[Call, str], request: pytest.FixtureRequest
) -> Iterator[None]:
    """AWS as moto plays it, with the buckets of images and of failures, a stream and a table."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    put_records, lock = KinesisBackend.put_records, threading.Lock()

    def one_at_a_time(*args: Any, **kwargs: Any) -> Any:
        with lock:  # moto gives two threads' records the same sequence number, and loses one
            return put_records(*args, **kwargs)

    monkeypatch.setattr(KinesisBackend, "put_records", one_at_a_time)
    with mock_aws(), watched() as calls:
        for bucket in (BUCKET, FAILURES):
            boto3.client("s3").create_bucket(Bucket=bucket)
        boto3.client("kinesis").create_stream(StreamName=STREAM, ShardCount=2)
        create_table(boto3.client("dynamodb"), TABLE)
        yield
    for call in tuple(calls):  # a thread that nobody waited for may still be adding
        suite_calls.setdefault(call, request.node.nodeid)
