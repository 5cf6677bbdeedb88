"""`cxr scale`: the steps that Kinesis takes, what it refuses, and what an interruption leaves."""

import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from support import STREAM, client
from test_runs import STACK
from typer.testing import CliRunner, Result

from cxr import scaling
from cxr.commands import runs as run_commands
from cxr.commands import terminal
from cxr.commands.app import app
from cxr.errors import Failed, InputError
from cxr.operations import Started
from cxr.scaling import Shards, scale, shards, steps
from cxr.stack import Stack


@pytest.mark.parametrize(
    ("present", "target", "way"),
    [
        (5, 20, [10, 20]),
        (5, 1, [3, 2, 1]),
        (5, 21, [10, 20, 21]),
        (1, 1000, [2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]),
        (7, 3, [4, 3]),
        (4, 4, []),
    ],
)
def test_a_step_at_most_doubles_or_halves(present: int, target: int, way: list[int]) -> None:
    assert steps(present, target) == way


@pytest.fixture
def kinesis(monkeypatch: pytest.MonkeyPatch, aws: None) -> Any:
    """moto's Kinesis with a stream of two shards, which refuses what AWS refuses. It notes the changes."""
    found = client("kinesis")
    update = found.update_shard_count
    made: list[int] = []

    def update_as_aws(**asked: Any) -> Any:
        present, target = number(), asked["TargetShardCount"]
        if target > 2 * present or 2 * target < present or len(made) == 10:
            answer = {"Error": {"Code": "LimitExceededException", "Message": "secret"}}
            raise found.exceptions.LimitExceededException(answer, "UpdateShardCount")
        made.append(target)
        return update(**asked)

    monkeypatch.setattr(found, "update_shard_count", update_as_aws)
    monkeypatch.setattr(found, "made", made, raising=False)
    monkeypatch.setattr(scaling, "client", lambda _: found)
    monkeypatch.setattr(scaling, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Stack, "find", lambda _: STACK)
    return found


def number() -> int:
    summary = client("kinesis").describe_stream_summary(StreamName=STREAM)["StreamDescriptionSummary"]
    return int(summary["OpenShardCount"])


def cxr(*arguments: object, exit_code: int = 0) -> Result:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done


def test_each_step_is_taken_and_counted(kinesis: Any) -> None:
    assert list(scale(STACK, 9)) == [Shards(2, 10), Shards(4, 9), Shards(8, 8), Shards(9, 7)]
    assert kinesis.made == [4, 8, 9]
    assert number() == 9
    assert list(scale(STACK, 2)) == [Shards(9, 7), Shards(5, 6), Shards(3, 5), Shards(2, 4)]


def test_the_command_shows_each_step_and_is_idempotent(kinesis: Any) -> None:
    done = cxr("scale", 5)
    assert done.stderr.splitlines() == [
        "Changing the stream, 2 → 4 → 5 shards: some minutes",
        "✓ 4 shards",
        "✓ 5 shards",
    ]
    assert done.stdout == (
        "The stream has 5 shards. Of the 10 changes that Kinesis takes in 24 hours, at most 8 are left.\n"
    )
    again = cxr("scale", 5, "--json")
    assert json.loads(again.stdout) == {"before": 5, "shards": 5, "changes_left": 8}
    assert again.stderr == ""
    assert kinesis.made == [4, 5]


def test_the_tenth_change_is_the_last_of_a_day(kinesis: Any) -> None:
    for target in (4, 2, 4, 2, 4, 2, 4, 2, 4, 2):
        list(scale(STACK, target))
    state = shards(STACK)
    assert state.left == 0
    assert state.more_at
    assert timedelta(hours=23) < state.more_at - datetime.now(UTC) <= timedelta(hours=24)
    error = cxr("scale", 3, exit_code=1).stderr.splitlines()[-1]
    assert error.startswith(
        "Error: Kinesis refuses to go from 2 to 3 shards (LimitExceededException): a stream"
    )
    assert f"run the same command again after {state.more_at:%Y-%m-%d %H:%M} UTC" in error
    assert "secret" not in error


def test_changes_of_yesterday_count_no_more(kinesis: Any) -> None:
    old, new = (datetime.now(UTC) - timedelta(hours=hours) for hours in (25, 23))
    noted = f"{old.timestamp():.0f} {new.timestamp():.0f} by hand"
    kinesis.add_tags_to_stream(StreamName=STREAM, Tags={scaling.TAG: noted})
    assert shards(STACK) == Shards(2, 9)


def test_tags_that_may_not_be_read_leave_the_count_unknown(
    kinesis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: Any) -> Any:
        raise kinesis.exceptions.ClientError(
            {"Error": {"Code": "AccessDeniedException"}}, "ListTagsForStream"
        )

    monkeypatch.setattr(kinesis, "list_tags_for_stream", denied)
    assert list(scale(STACK, 3)) == [Shards(2, None), Shards(3, None)]
    assert "how many are left is not known" in cxr("scale", 4).stdout


def test_a_change_under_way_is_waited_for(kinesis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = kinesis.describe_stream_summary
    states = ["UPDATING", "UPDATING", "ACTIVE", "UPDATING"]

    def answer(**asked: Any) -> Any:
        found = describe(**asked)
        found["StreamDescriptionSummary"]["StreamStatus"] = states.pop(0) if states else "ACTIVE"
        return found

    monkeypatch.setattr(kinesis, "describe_stream_summary", answer)
    assert [state.number for state in scale(STACK, 3)] == [2, 3]
    assert states == []


@pytest.mark.parametrize("target", [0, -1, 1001])
def test_a_number_that_cannot_be_is_refused(kinesis: Any, target: int) -> None:
    with pytest.raises(InputError, match=f"^{target} shards: expected 1 to 1,000$"):
        list(scale(STACK, target))
    assert kinesis.made == []


def interrupt_after(kinesis: Any, changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C once, when so many changes were begun."""
    update = kinesis.update_shard_count

    def pressed(**asked: Any) -> Any:
        answer = update(**asked)
        if len(kinesis.made) == changes:
            os.kill(os.getpid(), signal.SIGINT)
        return answer

    monkeypatch.setattr(kinesis, "update_shard_count", pressed)


def test_after_ctrl_c_it_says_where_it_stopped_and_goes_on(
    kinesis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(kinesis, 2, monkeypatch)
    done = cxr("scale", 16, exit_code=130)
    assert done.stderr.splitlines()[-1] == (
        "Stopped at 4 shards, or with the next step: the same command continues"
    )
    assert number() == 8
    cxr("scale", 16)
    assert kinesis.made == [4, 8, 16]


def refuses(kinesis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(**_: Any) -> Any:
        raise EndpointConnectionError(endpoint_url="https://kinesis.us-east-1.amazonaws.com")

    monkeypatch.setattr(kinesis, "describe_stream_summary", no_network)


class TestARun:
    """`cxr run --shards`, of a run that this class plays."""

    @pytest.fixture(autouse=True)
    def play(self, monkeypatch: pytest.MonkeyPatch, kinesis: Any) -> None:
        self.seen: list[int] = []
        self.at_the_end: Callable[[], object] = lambda: None

        def watch(*_: object) -> None:
            self.seen.append(number())
            self.at_the_end()

        monkeypatch.setattr(run_commands, "start_run", lambda *_, **__: Started("r", 40, 2))
        monkeypatch.setattr(run_commands, "watch_run", watch)

    def test_has_more_shards_for_its_time(self, kinesis: Any) -> None:
        done = cxr("run", "r", "--shards", 8)
        assert self.seen == [8]
        assert kinesis.made == [4, 8, 4, 2]
        assert done.stderr.splitlines()[-3:] == [
            "Changing the stream, 8 → 4 → 2 shards: some minutes",
            "✓ 4 shards",
            "✓ 2 shards",
        ]

    def test_that_is_interrupted_gives_them_back(self, kinesis: Any) -> None:
        self.at_the_end = lambda: os.kill(os.getpid(), signal.SIGINT)
        done = cxr("run", "r", "--shards", 4, exit_code=130)
        assert number() == 2
        assert "Run r continues" in done.stderr

    def test_whose_terminal_closes_gives_them_back(
        self, kinesis: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closed(*_: object, **__: object) -> None:
            raise OSError(5, "Input/output error")

        def close() -> None:
            monkeypatch.setattr(terminal.notes, "print", closed)
            os.kill(os.getpid(), signal.SIGHUP)

        self.at_the_end = close
        CliRunner().invoke(app, ["run", "r", "--shards", "4"])
        assert number() == 2

    def test_that_fails_gives_them_back(self, kinesis: Any) -> None:
        def fail() -> None:
            raise Failed("the job creator failed")

        self.at_the_end = fail
        assert "Error: the job creator failed" in cxr("run", "r", "--shards", 4, exit_code=1).stderr
        assert number() == 2

    def test_without_a_network_at_the_end_says_what_to_do(
        self, kinesis: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.at_the_end = lambda: refuses(kinesis, monkeypatch)
        lines = cxr("run", "r", "--shards", 4, exit_code=1).stderr.splitlines()
        assert lines[-2] == ("The stream was not set back: run `cxr scale 2`. `cxr doctor` reminds you")
        assert lines[-1].startswith("Error: no answer from kinesis.us-east-1.amazonaws.com")

    def test_while_the_stream_is_set_back_ctrl_c_stops_it(
        self, kinesis: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first Ctrl-C ends the watching, the second the setting back."""

        def press() -> None:
            interrupt_after(kinesis, 4, monkeypatch)
            os.kill(os.getpid(), signal.SIGINT)

        self.at_the_end = press
        done = cxr("run", "r", "--shards", 16, exit_code=130)
        assert kinesis.made == [4, 8, 16, 8]
        assert done.stderr.splitlines()[-1] == (
            "Stopped at 16 shards, or with the next step: `cxr scale 2` continues"
        )

    def test_is_not_started_if_the_changes_of_a_day_do_not_suffice(self, kinesis: Any) -> None:
        list(scale(STACK, 16))
        list(scale(STACK, 2))
        error = cxr("run", "r", "--shards", 16, exit_code=2).stderr
        assert error.startswith("Error: --shards 16: to 16 shards and back to 2 takes 6 changes. Of the 10")
        assert (self.seen, len(kinesis.made)) == ([], 6)

    def test_with_enough_shards_changes_nothing(self, kinesis: Any) -> None:
        assert "The stream has 2 shards already" in cxr("run", "r", "--shards", 2).stderr
        assert (self.seen, kinesis.made) == ([2], [])

    def test_that_is_not_waited_for_cannot_give_them_back(self, kinesis: Any) -> None:
        assert "--no-wait" in cxr("run", "r", "--shards", 4, "--no-wait", exit_code=2).stderr
