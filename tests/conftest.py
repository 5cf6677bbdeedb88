"""What all tests share: default signals, no settings of a person's own, a mocked AWS, real X-rays."""

import functools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from deployment import Deployment
from moto import mock_aws
from moto.kinesis.models import KinesisBackend
from permissions import refused_by, watched
from runs import layout
from support import BUCKET, FAILURES, STREAM, TABLE, XRAYS, client

from cxr.local_aws.processes import STOP_SIGNALS
from reliability.table import create_table

# Each botocore session reads the descriptions of the services anew, which takes 0.1 s. moto makes a session
# for every test, and `cxr` one for every client.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

# Environment variables that change what the code under test finds, or how it prints.
SETTINGS = (
    "AWS_",
    "COLUMNS",
    "CXR_SETTINGS",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "LINES",
    "NO_COLOR",
    "PY_COLORS",
)
DEFAULT_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


@pytest.hookimpl(optionalhook=True)  # not there without pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores, because some tests wait; a process takes up to 1 GB."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--image", metavar="NAME", help="test this image of the classifier, too, in containers")
    parser.addoption(
        "--search",
        action="store_true",
        help="run only tests that are marked `examples`, with many each, or `slow`",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests of the image without one, and leave out the tests that are not of this run."""
    if not config.getoption("--image"):
        for item in items:
            if item.get_closest_marker("container"):
                item.add_marker(pytest.mark.skip("needs Docker and --image NAME, which `make image` builds"))
    size = _size(config)

    def is_chosen(item: pytest.Item) -> bool:
        if marker := item.get_closest_marker("examples"):
            return size in marker.kwargs
        if config.getoption("--image") and item.get_closest_marker("container"):
            return True  # a run with an image tests all there is to test with it
        return (size == "many") == bool(item.get_closest_marker("slow"))

    chosen = [item for item in items if is_chosen(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _size(config: pytest.Config) -> str:
    return "many" if config.getoption("--search") else "few"


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say at the very end how many tests were skipped, where and why."""
    yield
    skipped = Counter(
        (report.longrepr[2].removeprefix("Skipped: "), report.nodeid.partition("::")[0])
        for report in terminalreporter.stats.get("skipped", [])
    )
    for (reason, file), count in sorted(skipped.items()):
        terminalreporter.write_line(f"{count} skipped in {file}: {reason}", yellow=True)


@pytest.fixture
def examples(request: pytest.FixtureRequest) -> int:
    """How many examples a test takes: by its marker, `examples(few=..., many=...)`."""
    marker = request.node.get_closest_marker("examples")
    return int(marker.kwargs[_size(request.config)])


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_ones_own() -> Iterator[None]:
    """The environment without what a person or a CI system has set for AWS and for terminals."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(SETTINGS)]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("CXR_SETTINGS", os.devnull)
        yield


@pytest.fixture(autouse=True)
def default_signal_handlers() -> Iterator[None]:
    """Each test, and each process that it starts, begins with the default handlers.

    A shell starts background jobs with SIGINT ignored, and child processes inherit that. A command that runs
    in this process sets handlers of its own.
    """
    handlers = {number: signal.signal(number, DEFAULT_HANDLERS[number]) for number in STOP_SIGNALS}
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


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    """One for all tests of the group `deployment`: to deploy takes half a minute."""
    with Deployment.made() as deployment:
        yield deployment


@functools.cache
def _moto_session() -> boto3.Session:
    """One for all tests of moto: to make one takes 40 ms."""
    return boto3.Session()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """AWS as moto plays it, with the buckets of images and of failures, a stream and a table.

    Fails a test whose handlers made a call that their roles do not allow: those of the default stack, or of
    the settings in the marker `roles_of`.
    """
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
    # moto reads all items of a table for a query, and fails if another thread deletes some meanwhile.
    monkeypatch.setattr("runs.table.DELETERS", 1)
    # moto takes 10 ms for a query, and most tests read all partitions.
    monkeypatch.setattr(layout, "PARTITIONS", 4)
    with mock_aws(), watched() as calls:
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", _moto_session())
        for bucket in (BUCKET, FAILURES):
            client("s3").create_bucket(Bucket=bucket)
        client("kinesis").create_stream(StreamName=STREAM, ShardCount=2)
        create_table(client("dynamodb"), TABLE)
        yield
    # A copy: a thread that the test did not wait for may still add to them.
    marker = request.node.get_closest_marker("roles_of")
    refused = refused_by(marker.args if marker else (), tuple(calls))
    assert refused == [], "the roles of the stack do not allow what the handlers asked for"
