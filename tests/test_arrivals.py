"""Standing runs: the functions of `lambdas/arrivals` and the classifier, on moto."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from arrivals import reconciler
from arrivals.announcer import Announcer
from arrivals.reconciler import Reconciler
from classifier.handler import Classifier, load_model
from runs import jobs
from runs.arrivals import day_of, run_id
from runs.jobs import JobError
from runs.run import Run
from runs.table import RunTable
from support import (
    BUCKET,
    FAILURES,
    PREFIX,
    STREAM,
    TABLE,
    begin_run,
    client,
    counts,
    events_noted,
    image_bytes,
    recounted,
    table_items,
)

from cxr.arrivals import pause, reconcile, resume
from cxr.errors import InputError
from cxr.operations import delete_run
from cxr.retry import retry_run
from cxr.stack import Stack

pytestmark = [pytest.mark.usefixtures("aws"), pytest.mark.roles_of("arrivals=on")]

NOW = datetime.now(UTC)
TODAY, YESTERDAY = run_id(NOW.date()), run_id(NOW.date() - timedelta(days=1))


@pytest.fixture
def noted() -> list[dict[str, Any]]:
    """What the functions said on EventBridge."""
    return []


class Arrivals:
    """Both functions, each with clients of its own."""

    def __init__(self, noted: list[dict[str, Any]]) -> None:
        labels = [{"name": "abnormal", "threshold": Decimal("0.5")}]

        def shared() -> dict[str, Any]:
            return {
                "kinesis": boto3.client("kinesis"),
                "table": RunTable(boto3.client("dynamodb"), TABLE),
                "bucket": BUCKET,
                "prefix": PREFIX,
                "stream": STREAM,
                "images_per_job": 32,
                "run_fields": {"model": "m:1", "model_sha256": "0", "labels": labels, "settings": {}},
            }

        self.announce = Announcer(**shared())
        self.reconcile = Reconciler(s3=boto3.client("s3"), events=events_noted(noted), **shared())


@pytest.fixture
def arrivals(noted: list[dict[str, Any]]) -> Arrivals:
    return Arrivals(noted)


@pytest.fixture
def classifier(noted: list[dict[str, Any]]) -> Classifier:
    return Classifier(
        model=load_model(),
        table=RunTable(boto3.client("dynamodb"), TABLE),
        s3=boto3.client("s3"),
        events=events_noted(noted),
        bucket=BUCKET,
        vcpus=1,
    )


def upload(name: str, seed: int = 0) -> str:
    """Put an image into the bucket. Its ETag, without quotes."""
    body = image_bytes(seed=seed)
    return str(client("s3").put_object(Bucket=BUCKET, Key=PREFIX + name, Body=body)["ETag"]).strip('"')


def message(name: str, etag: str, at: datetime = NOW, number: int = 0, **fields: Any) -> dict[str, Any]:
    """An event of S3, as the queue gives it to Lambda."""
    event = {
        "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "detail": {"bucket": {"name": BUCKET}, "object": {"key": PREFIX + name, "etag": etag}},
        **fields,
    }
    return {"messageId": f"{name.removesuffix('.png')}-{number}", "body": json.dumps(event)}


def deliver(classifier: Classifier) -> dict[str, Any]:
    """Give the classifier all jobs that the stream holds, in one batch."""
    return classifier(kinesis_records(), lambda: 100_000)


def kinesis_records() -> dict[str, Any]:
    kinesis = client("kinesis")
    records: list[dict[str, Any]] = []
    for shard in kinesis.list_shards(StreamName=STREAM)["Shards"]:
        start = kinesis.get_shard_iterator(
            StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )
        for record in kinesis.get_records(ShardIterator=start["ShardIterator"])["Records"]:
            data = base64.b64encode(record["Data"]).decode()
            records.append({"kinesis": {"sequenceNumber": str(len(records)), "data": data}})
    return {"Records": records}


def agreed(run: str = TODAY) -> dict[str, int]:
    """The counts of a run, which must be those of its predictions; images only."""
    items = table_items()
    found = counts(items, run)
    assert found == recounted(items, run)
    return {name: number for name, number in found.items() if not name.startswith("WARNING")}


def run(name: str = TODAY) -> Run:
    found = RunTable(client("dynamodb"), TABLE).run(name)
    assert found
    return found


def prediction(name: str, run: str = TODAY) -> dict[str, Any]:
    (found,) = [item for (pk, sk), item in table_items().items() if sk == PREFIX + name and run in pk]
    return found


@pytest.fixture(autouse=True)
def no_function_prints_a_key(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Logs and metrics hold no key of an image: keys can identify patients."""
    yield
    printed = "".join(capsys.readouterr())
    assert not re.search(r"\.png|site/", printed), printed


def test_an_image_that_arrives_waits_and_then_has_a_score(
    arrivals: Arrivals, classifier: Classifier, noted: list[dict[str, Any]]
) -> None:
    etag = upload("a.png")
    assert arrivals.announce([message("a.png", etag)]) == {"batchItemFailures": []}
    assert (run().state, run().arrived, run().expected) == ("LISTING", 1, None)
    assert agreed() == {"WAITING": 1}
    assert deliver(classifier) == {"batchItemFailures": []}
    assert agreed() == {"SCORED": 1}
    assert prediction("a.png")["etag"] == etag
    assert [entry["DetailType"] for entry in noted] == ["Images Scored"]
    assert PREFIX not in str(noted)


def test_an_event_that_comes_twice_is_one_image(arrivals: Arrivals, classifier: Classifier) -> None:
    etag = upload("a.png")
    arrivals.announce([message("a.png", etag), message("a.png", etag, number=1)])
    arrivals.announce([message("a.png", etag)])  # its job may have been lost: it is sent again
    deliver(classifier)
    arrivals.announce([message("a.png", etag)])
    assert (run().arrived, agreed()) == (1, {"SCORED": 1})
    before = prediction("a.png")
    deliver(classifier)
    assert prediction("a.png") == before


def test_an_overwritten_image_is_scored_again_and_counted_once(
    arrivals: Arrivals, classifier: Classifier
) -> None:
    arrivals.announce([message("a.png", upload("a.png"))])
    deliver(classifier)
    first = prediction("a.png")
    newest = upload("a.png", seed=1)
    arrivals.announce([message("a.png", newest)])
    assert agreed() == {"WAITING": 1}
    deliver(classifier)
    assert (run().arrived, agreed()) == (1, {"SCORED": 1})
    assert prediction("a.png")["etag"] == newest != first["etag"]
    assert prediction("a.png")["scores"] != first["scores"]


def test_a_slow_classifier_does_not_write_an_old_content(arrivals: Arrivals, classifier: Classifier) -> None:
    arrivals.announce([message("a.png", upload("a.png"))])
    records = kinesis_records()
    fetch = classifier._fetch

    def overwritten_meanwhile(*args: Any) -> Any:
        found = fetch(*args)
        classifier._fetch = fetch  # type: ignore[method-assign]
        arrivals.announce([message("a.png", upload("a.png", seed=1))])
        return found

    classifier._fetch = overwritten_meanwhile  # type: ignore[method-assign,assignment]
    assert classifier(records, lambda: 100_000) == {"batchItemFailures": []}
    assert agreed() == {"WAITING": 1}
    deliver(classifier)
    assert agreed() == {"SCORED": 1}
    assert prediction("a.png")["etag"] == upload("a.png", seed=1)


def test_an_event_that_is_late_has_the_image_scored_once_more(
    arrivals: Arrivals, classifier: Classifier
) -> None:
    old, newest = upload("a.png"), upload("a.png", seed=1)
    arrivals.announce([message("a.png", newest)])
    deliver(classifier)
    arrivals.announce([message("a.png", old)])
    deliver(classifier)
    assert (agreed(), prediction("a.png")["etag"]) == ({"SCORED": 1}, newest)


def test_a_deleted_image_is_missing_until_it_arrives_again(
    arrivals: Arrivals, classifier: Classifier
) -> None:
    etag = upload("a.png")
    client("s3").delete_object(Bucket=BUCKET, Key=PREFIX + "a.png")
    arrivals.announce([message("a.png", etag)])
    deliver(classifier)
    assert agreed() == {"FAILED#IMAGE_MISSING": 1}
    arrivals.announce([message("a.png", upload("a.png"))])
    deliver(classifier)
    assert (run().arrived, agreed()) == (1, {"SCORED": 1})


def test_what_is_no_image_of_the_stack_is_dropped(arrivals: Arrivals) -> None:
    of_other: dict[str, Any] = {"bucket": {"name": "other"}, "object": {"key": PREFIX + "a.png", "etag": "0"}}
    sent = [
        message("labels.csv", "0"),
        message("folder/", "0"),
        message("a.png", "0", number=1, detail=of_other),
    ]
    assert arrivals.announce(sent) == {"batchItemFailures": []}
    assert table_items() == {}


def test_keys_are_taken_as_they_are(arrivals: Arrivals, classifier: Classifier) -> None:
    for name in ("a b.png", "a+b.png", "a%20b.png", "ü/ß.png"):
        arrivals.announce([message(name, upload(name))])
    deliver(classifier)
    assert agreed() == {"SCORED": 4}


def test_a_message_that_is_no_event_comes_again(
    arrivals: Arrivals, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [{"messageId": "1", "body": f"{PREFIX}name.png"}, {"messageId": "2", "body": "{}"}]
    answer = arrivals.announce([*broken, message("a.png", upload("a.png"))])
    assert answer == {"batchItemFailures": [{"itemIdentifier": "1"}, {"itemIdentifier": "2"}]}
    assert agreed() == {"WAITING": 1}
    assert ".png" not in capsys.readouterr().out


def test_a_refused_job_brings_its_events_back(arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise jobs.StreamRefused("the stream refused 1 jobs")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "put", refuse)
        answer = arrivals.announce([message("a.png", upload("a.png"))])
    assert answer == {"batchItemFailures": [{"itemIdentifier": "a-0"}]}
    assert agreed() == {"WAITING": 1}
    arrivals.announce([message("a.png", upload("a.png"))])
    assert len(kinesis_records()["Records"]) == 1


class TestPause:
    """`cxr cancel` and `cxr resume` of a standing run. `mapping` is that from the queue to the announcer."""

    STACK = Stack(
        *("ChestXray", BUCKET, PREFIX, "c", STREAM, "f", "m", TABLE, FAILURES),
        reconciler="r",
        arrivals_mapping="a",
    )

    @pytest.fixture
    def mapping(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        state = {"State": "Enabled"}

        def update(*, Enabled: bool, **_: Any) -> None:  # noqa: N803 - boto3's name
            state["State"] = "Enabled" if Enabled else "Disabled"

        functions = SimpleNamespace(
            get_event_source_mapping=lambda **_: state, update_event_source_mapping=update
        )
        monkeypatch.setattr(
            "cxr.arrivals.client", lambda name, **_: functions if name == "lambda" else client(name)
        )
        return state

    def test_what_arrives_comes_back_until_it_is_over(
        self, arrivals: Arrivals, classifier: Classifier, mapping: dict[str, str]
    ) -> None:
        arrivals.announce([message("a.png", upload("a.png"))])
        pause(self.STACK, TODAY)
        assert (run().state, mapping["State"]) == ("CANCELLED", "Disabled")
        late = message("b.png", upload("b.png"))  # the mapping had it before it was disabled
        assert arrivals.announce([late]) == {"batchItemFailures": [{"itemIdentifier": late["messageId"]}]}
        with pytest.raises(InputError, match="resume it first"):
            reconcile(self.STACK, TODAY)
        with pytest.raises(InputError, match=f"`cxr resume {TODAY}`"):
            retry_run(self.STACK, TODAY)

        assert resume(self.STACK, TODAY).waiting == 1
        assert (run().state, mapping["State"]) == ("LISTING", "Enabled")
        arrivals.announce([late])
        deliver(classifier)
        assert agreed() == {"SCORED": 2}
        with pytest.raises(InputError, match="only one that was cancelled"):
            resume(self.STACK, TODAY)

    def test_a_resumption_that_was_interrupted_goes_on(
        self, arrivals: Arrivals, mapping: dict[str, str]
    ) -> None:
        arrivals.announce([message("a.png", upload("a.png"))])
        pause(self.STACK, TODAY)
        table = RunTable(client("dynamodb"), TABLE)
        table.resume(run(), 0)  # and then AWS did not enable the mapping
        resume(self.STACK, TODAY)
        assert mapping["State"] == "Enabled"

    def test_an_older_run_does_not_end_the_pause(self, arrivals: Arrivals, mapping: dict[str, str]) -> None:
        arrivals.announce([message("a.png", upload("a.png"), at=NOW - timedelta(days=1))])
        arrivals.announce([message("b.png", upload("b.png"))])
        for name in (YESTERDAY, TODAY):
            pause(self.STACK, name)
        resume(self.STACK, YESTERDAY)
        assert (run(YESTERDAY).state, mapping["State"]) == ("LISTING", "Disabled")

    def test_another_run_is_not_resumed(self, mapping: dict[str, str]) -> None:
        begin_run("batch", state="CANCELLED")
        with pytest.raises(InputError, match="no standing run"):
            resume(self.STACK, "batch")

    @pytest.mark.parametrize("name", [TODAY, YESTERDAY])
    def test_a_run_that_would_come_back_is_not_deleted(self, arrivals: Arrivals, name: str) -> None:
        at = NOW if name == TODAY else NOW - timedelta(days=1)
        arrivals.announce([message("a.png", upload("a.png"), at=at)])
        RunTable(client("dynamodb"), TABLE).cancel(name)
        with pytest.raises(InputError, match="would come back when its day is reconciled"):
            delete_run(self.STACK, name)


class TestReconciliation:
    @pytest.fixture(autouse=True)
    def the_day_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What S3 holds was put there today, so the run that is reconciled is that of yesterday, tomorrow."""
        monkeypatch.setattr(reconciler, "_today", lambda: NOW.date() + timedelta(days=1))

    def test_it_sends_what_no_event_announced_and_completes(
        self, arrivals: Arrivals, classifier: Classifier, noted: list[dict[str, Any]]
    ) -> None:
        arrivals.announce([message("a.png", upload("a.png"))])
        deliver(classifier)
        upload("b.png")
        upload("a.png", seed=1)
        assert arrivals.reconcile({}, plenty) == {"Runs": {TODAY: {"Missed": 2, "SentAgain": 0}}}
        assert (run().state, run().arrived, run().expected) == ("SCORING", 2, 2)
        deliver(classifier)
        assert (run().state, agreed()) == ("COMPLETE", {"SCORED": 2})
        assert [entry["DetailType"] for entry in noted][-1] == "Run Complete"

    def test_it_sends_again_what_waits(self, arrivals: Arrivals, classifier: Classifier) -> None:
        arrivals.announce([message("a.png", upload("a.png"))])
        client("s3").delete_object(Bucket=BUCKET, Key=PREFIX + "a.png")
        lose_the_jobs()
        assert arrivals.reconcile({"RunId": TODAY}, plenty) == {
            "Runs": {TODAY: {"Missed": 0, "SentAgain": 1}}
        }
        deliver(classifier)
        assert (run().state, agreed()) == ("COMPLETE", {"FAILED#IMAGE_MISSING": 1})

    def test_a_day_without_any_event(self, arrivals: Arrivals, classifier: Classifier) -> None:
        upload("a.png")
        arrivals.reconcile({}, plenty)
        deliver(classifier)
        assert (run().state, agreed()) == ("COMPLETE", {"SCORED": 1})

    def test_a_day_without_any_image_has_no_run(self, arrivals: Arrivals) -> None:
        assert arrivals.reconcile({}, plenty) == {"Runs": {TODAY: {"Missed": 0, "SentAgain": 0}}}
        assert table_items() == {}

    def test_an_event_after_it_changes_nothing(self, arrivals: Arrivals, classifier: Classifier) -> None:
        etag = upload("a.png")
        arrivals.reconcile({}, plenty)
        deliver(classifier)
        assert arrivals.announce([message("a.png", etag), message("gone.png", "0")]) == {
            "batchItemFailures": []
        }
        assert (run().state, agreed()) == ("COMPLETE", {"SCORED": 1})

    def test_an_image_of_midnight_is_in_one_run(self, arrivals: Arrivals, classifier: Classifier) -> None:
        arrivals.announce([message("a.png", upload("a.png"), at=NOW + timedelta(days=1))])
        deliver(classifier)
        arrivals.reconcile({"RunId": TODAY}, plenty)
        assert agreed(run_id(NOW.date() + timedelta(days=1))) == {"SCORED": 1}
        assert agreed() == {}

    def test_a_day_that_is_not_over_stays_open(
        self, arrivals: Arrivals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reconciler, "_today", NOW.date)
        upload("a.png")
        arrivals.reconcile({"RunId": TODAY}, plenty)
        assert (run().state, agreed()) == ("LISTING", {"WAITING": 1})

    def test_it_stops_in_time(self, arrivals: Arrivals, classifier: Classifier) -> None:
        arrivals.announce([message("a.png", upload("a.png"))])
        with pytest.raises(Exception, match="invoke again"):
            arrivals.reconcile({}, lambda: 0)
        assert run().expected is None
        arrivals.reconcile({}, plenty)
        deliver(classifier)
        assert run().state == "COMPLETE"

    def test_an_image_that_is_not_fetched_is_not_sent_again(
        self, arrivals: Arrivals, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("classifier.handler.MAX_BYTES", 10)
        arrivals.announce([message("a.png", upload("a.png"))])
        deliver(classifier)
        assert agreed() == {"FAILED#IMAGE_TOO_LARGE": 1}
        assert arrivals.reconcile({}, plenty) == {"Runs": {TODAY: {"Missed": 0, "SentAgain": 0}}}
        assert run().state == "COMPLETE"

    def test_paused_arrivals_wait(self, arrivals: Arrivals) -> None:
        arrivals.announce([message("a.png", upload("a.png"), at=NOW - timedelta(days=1))])
        RunTable(client("dynamodb"), TABLE).cancel(YESTERDAY)
        assert arrivals.reconcile({}, plenty) == {"Runs": {}}

    @pytest.mark.parametrize("name", ["other", "arrivals-2026-13-01", "arrivals-2999-01-01"])
    def test_a_name_of_no_day_is_refused(self, arrivals: Arrivals, name: str) -> None:
        with pytest.raises(JobError, match="arrivals-YYYY-MM-DD"):
            arrivals.reconcile({"RunId": name}, plenty)


plenty: Callable[[], int] = lambda: 100_000  # noqa: E731 - milliseconds that are left


def lose_the_jobs() -> None:
    kinesis = client("kinesis")
    kinesis.delete_stream(StreamName=STREAM)
    kinesis.create_stream(StreamName=STREAM, ShardCount=1)


def test_the_name_of_a_day() -> None:
    assert day_of(TODAY) == NOW.date()
    assert day_of("arrivals-2026-02-30") is None
    assert day_of("nightly") is None
