"""The classifier's handler on moto, with a model that takes no time: outcomes, counts, and redelivery."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from botocore.response import StreamingBody
from classifier import objects
from classifier.bounds import MAX_BYTES
from classifier.decode import decode
from classifier.handler import Classifier, NotDone, Read
from classifier.preprocessing import Pixels, Preprocessing
from PIL import Image
from runs import layout
from runs.backoff import Patience
from runs.jobs import JobError
from runs.predictions import Prediction
from runs.table import RunTable
from support import (
    BUCKET,
    PREFIX,
    TABLE,
    begin_run,
    client,
    counts,
    events_noted,
    image_bytes,
    recounted,
    table_items,
    uid,
)
from support import kinesis_event as event
from urllib3.exceptions import ProtocolError, SSLError

pytestmark = pytest.mark.usefixtures("aws")


class Brightness:
    """A model whose score is the mean of the pixels."""

    name = "brightness:1.0.0"
    sha256 = "cd" * 32
    preprocess = Preprocessing(channels=1, resize=64, crop=64)

    def prepare(self, data: bytes) -> tuple[Pixels, tuple[str, ...]]:
        image = decode(data)
        return self.preprocess(image), ("COLOUR",) if image.mode == "RGB" else ()

    def __init__(self) -> None:
        self.scored = 0

    def score(self, pixels: Sequence[Pixels]) -> list[dict[str, Decimal]]:
        self.scored += len(pixels)
        return [{"bright": Decimal(float(p.mean() / 255)).quantize(Decimal("0.000001"))} for p in pixels]

    def positive(self, scores: dict[str, Decimal]) -> tuple[str, ...]:
        return tuple(label for label, score in scores.items() if score >= Decimal("0.5"))


@pytest.fixture
def model() -> Brightness:
    return Brightness()


@pytest.fixture
def classifier(aws: None, model: Brightness) -> Classifier:
    return make(model)


def make(
    model: Any, vcpus: int = 1, announced: list[dict[str, Any]] | None = None, read: Read | None = None
) -> Classifier:
    return Classifier(
        model=model,
        table=RunTable(boto3.client("dynamodb"), TABLE),
        s3=boto3.client("s3"),
        events=events_noted([] if announced is None else announced),
        bucket=BUCKET,
        vcpus=vcpus,
        read=read,
    )


waited: list[float] = []  # seconds that the classifier has waited in this invocation


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting takes no time, but it is taken off `plenty`."""
    waited.clear()
    monkeypatch.setattr("runs.backoff.time", SimpleNamespace(sleep=waited.append))


def plenty() -> int:
    """Milliseconds left."""
    return 110_000 - round(1000 * sum(waited))


def key(name: str) -> str:
    return PREFIX + name


def put(**objects: bytes) -> list[str]:
    for name, body in objects.items():
        client("s3").put_object(Bucket=BUCKET, Key=key(name), Body=body)
    return [key(name) for name in objects]


def start(
    run_id: str, expected: int | None = None, state: str = "LISTING", sha256: str = Brightness.sha256
) -> None:
    """The run's item, as the job creator makes it."""
    fields: dict[str, Any] = {
        "state": state,
        "source": {"kind": "Prefix", "value": PREFIX},
        "model": "brightness:1.0.0",
        "model_sha256": sha256,
    }
    if expected is not None:
        fields |= {"expected": expected, "state": "SCORING"}
    begin_run(run_id, **fields)


def job(*keys: str, run_id: str = "r", **more: Any) -> dict[str, Any]:
    return {"RunId": run_id, "RunUid": uid(run_id), "Bucket": BUCKET, "Keys": list(keys), **more}


def refuse(
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    code: str,
    while_true: Callable[[], bool] = lambda: True,
    **fields: Any,
) -> None:
    """Makes AWS answer every call of one operation with an error."""
    call = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]

    def answer(self: Any, name: str, arguments: dict[str, Any]) -> Any:
        if name == operation and while_true():
            raise self.exceptions.from_code(code)({"Error": {"Code": code, "Message": ""}, **fields}, name)
        return call(self, name, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", answer)


def failed(answer: dict[str, Any]) -> list[str]:
    waited.clear()  # this invocation has ended
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def prediction(name: str, run_id: str = "r") -> dict[str, Any]:
    ((_, item),) = [
        (pk, item)
        for (pk, sk), item in table_items().items()
        if pk in layout.partitions(run_id) and sk == key(name)
    ]
    return item


def agreed(run_id: str = "r") -> dict[str, int]:
    """The run's counts, which must be those of its predictions."""
    found = table_items()
    assert counts(found, run_id) == recounted(found, run_id)
    return counts(found, run_id)


class TestPredictions:
    def test_a_scored_image(self, classifier: Classifier) -> None:
        start("r")
        keys = put(a=image_bytes())
        assert classifier(event(job(*keys)), plenty) == {"batchItemFailures": []}
        stored = prediction("a")
        scored_at = stored.pop("scored_at")
        assert stored.pop("scores").keys() == {"bright"}
        assert stored == {
            "status": "SCORED",
            "positive": [],
            "warnings": [],
            "model": "brightness:1.0.0",
            "model_sha256": "cd" * 32,
        }
        assert scored_at.endswith("+00:00")

    def test_a_bad_image_fails_alone_with_its_code(self, classifier: Classifier) -> None:
        start("r")
        good = put(a=image_bytes(), b=image_bytes(seed=1))
        bad = put(empty=b"", text=b"hello", cut=image_bytes()[:900], small=image_bytes((10, 10)))
        answer = classifier(event(job(good[0], *bad, key("missing"), good[1])), plenty)
        assert failed(answer) == []
        assert {
            name: prediction(name).get("error")
            for name in ("a", "b", "empty", "text", "cut", "small", "missing")
        } == {
            "a": None,
            "b": None,
            "empty": "IMAGE_EMPTY",
            "text": "NOT_AN_IMAGE",
            "cut": "IMAGE_CORRUPT",
            "small": "IMAGE_TOO_SMALL",
            "missing": "IMAGE_MISSING",
        }
        assert agreed()["SCORED"] == 2

    def test_what_obstore_does_not_read_is_read_by_boto3(self, model: Brightness) -> None:
        def read(_bucket: str, name: str, _most: int) -> objects.Object | int:
            if name == key("large"):
                return MAX_BYTES + 1
            if name == key("a"):
                return objects.Object(image_bytes(), '"0"')
            raise objects.NotRead

        start("r")
        put(b=image_bytes())
        names = ("a", "b", "large", "missing")
        answer = make(model, read=read)(event(job(*map(key, names))), plenty)
        assert failed(answer) == []
        codes = [prediction(name).get("error") for name in names]
        assert codes == [None, None, "IMAGE_TOO_LARGE", "IMAGE_MISSING"]

    def test_what_s3_never_gives_out_fails_alone_and_is_fetched_once(self, model: Brightness) -> None:
        start("r", expected=64)
        keys = put(**{f"i{n:02}": image_bytes((64, 64), seed=n) for n in range(64)})
        archived, encrypted = keys[::8], keys[1::16]
        for archive in archived:
            client("s3").copy_object(
                Bucket=BUCKET, Key=archive, CopySource=f"{BUCKET}/{archive}", StorageClass="DEEP_ARCHIVE"
            )
        classifier = make(model)
        fetched: list[str] = []

        def note(params: dict[str, Any], **_: Any) -> None:
            fetched.append(params["Key"])
            if params["Key"] in encrypted:
                raise ClientError({"Error": {"Code": "InvalidRequest", "Message": ""}}, "GetObject")

        classifier._s3.meta.events.register("provide-client-params.s3.GetObject", note)
        assert failed(classifier(event(*(job(*keys[at : at + 8]) for at in range(0, 64, 8))), plenty)) == []
        assert agreed() == {
            "SCORED": 52,
            "FAILED#IMAGE_ARCHIVED": 8,
            "FAILED#IMAGE_CUSTOMER_KEY": 4,
        }
        assert sorted(fetched) == keys
        assert table_items()["RUN", "r"]["state"] == "COMPLETE"

        for archive in archived:
            client("s3").restore_object(Bucket=BUCKET, Key=archive, RestoreRequest={"Days": 1})
        predictions = RunTable(client("dynamodb"), TABLE).failed("r")
        again = [found.key for found in predictions if found.error == "IMAGE_ARCHIVED"]
        assert sorted(again) == archived
        assert failed(classifier(event(job(*again, continued=True)), plenty)) == []
        assert agreed() == {"SCORED": 60, "FAILED#IMAGE_CUSTOMER_KEY": 4}

    @pytest.mark.usefixtures("aws")
    def test_as_many_images_at_once_as_there_are_vcpus(self) -> None:
        class Together(Brightness):
            """Scores an image only together with another."""

            others = threading.Barrier(2, timeout=10)

            def score(self, pixels: Sequence[Pixels]) -> list[dict[str, Decimal]]:
                self.others.wait()
                return super().score(pixels)

        start("r")
        keys = put(**{f"i{n}": image_bytes((64, 64), seed=n) for n in range(20)})
        make(Together(), vcpus=2)(event(job(*keys)), plenty)
        assert agreed() == {"SCORED": 20}

    def test_ninety_nine_images_are_one_job(self, classifier: Classifier) -> None:
        start("r", expected=99)
        keys = put(**{f"i{n}": image_bytes((64, 64)) for n in range(99)})
        assert failed(classifier(event(job(*keys)), plenty)) == []
        assert agreed() == {"SCORED": 99}
        assert table_items()[("RUN", "r")]["state"] == "COMPLETE"

    @pytest.mark.parametrize("error", [SSLError("secret"), OSError("secret"), ProtocolError("secret")])
    def test_a_body_that_breaks_off_brings_its_own_job_back(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
    ) -> None:
        """Also where botocore has no error of its own for how it does."""
        start("r")
        a, b = put(a=image_bytes(), b=image_bytes(seed=1))
        read = StreamingBody.read
        breaks: Iterator[bool] = iter([True, False])

        def broken(self: StreamingBody, *args: Any, **kwargs: Any) -> Any:
            if next(breaks, False):
                raise error
            return read(self, *args, **kwargs)

        monkeypatch.setattr(StreamingBody, "read", broken)
        assert len(failed(classifier(event(job(a), job(b)), plenty))) == 1  # whichever is read first
        assert agreed() == {"SCORED": 1}
        printed = capsys.readouterr().out
        assert type(error).__name__ in printed
        assert "secret" not in printed

    def test_an_object_too_large_is_not_read(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start("r")
        monkeypatch.setattr("classifier.handler.MAX_BYTES", 100)
        classifier(event(job(*put(a=image_bytes()))), plenty)
        assert prediction("a")["error"] == "IMAGE_TOO_LARGE"

    def test_large_objects_are_not_held_before_their_turn(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("classifier.handler.AHEAD_BYTES", 100_000)
        large = image_bytes() + bytes(100_000)
        held, most = 0, 0
        lock = threading.Lock()
        read, prepare = StreamingBody.read, classifier._model.prepare

        def hold(size: int) -> None:
            nonlocal held, most
            with lock:
                held += size
                most = max(most, held)

        def counted_read(self: StreamingBody, *args: Any, **kwargs: Any) -> bytes:
            data = read(self, *args, **kwargs)
            hold(len(data))
            return data

        def counted_prepare(data: bytes) -> Any:
            time.sleep(0.01)  # so that fetching is ahead
            hold(-len(data))
            return prepare(data)

        monkeypatch.setattr(StreamingBody, "read", counted_read)
        monkeypatch.setattr(classifier._model, "prepare", counted_prepare)
        start("r", expected=24)
        keys = put(**{f"i{n:02}": large for n in range(24)})
        assert failed(classifier(event(job(*keys)), plenty)) == []
        assert agreed() == {"SCORED": 24}
        assert most == len(large)

    def test_warnings_are_stored_and_counted_beside_the_images(self, classifier: Classifier) -> None:
        start("r", expected=3)
        keys = put(a=image_bytes(mode="RGB"), b=image_bytes(), c=b"text")
        again = event(job(*keys))
        classifier(again, plenty)
        classifier(again, plenty)
        assert prediction("a")["warnings"] == ["COLOUR"]
        assert agreed() == {"SCORED": 2, "FAILED#NOT_AN_IMAGE": 1, "WARNING#COLOUR": 1}
        assert table_items()[("RUN", "r")]["state"] == "COMPLETE"

    def test_warnings_do_not_complete_a_run(self, classifier: Classifier) -> None:
        start("r", expected=2)
        classifier(event(job(*put(a=image_bytes(mode="RGB")))), plenty)
        assert table_items()[("RUN", "r")]["state"] == "SCORING"


class TestRedelivery:
    def test_the_same_record_again_changes_nothing(self, classifier: Classifier) -> None:
        start("r", expected=3)
        jobs = event(job(*put(a=image_bytes(), b=b"text")), job(*put(c=image_bytes(seed=3))))
        classifier(jobs, plenty)
        before = table_items()
        assert failed(classifier(jobs, plenty)) == []
        assert table_items() == before
        assert agreed() == {"SCORED": 2, "FAILED#NOT_AN_IMAGE": 1}

    def test_a_job_half_of_which_is_there_writes_the_other_half(self, classifier: Classifier) -> None:
        start("r")
        keys = put(a=image_bytes(), b=b"text", c=image_bytes(seed=3))
        classifier(event(job(*keys[:2])), plenty)
        classifier(event(job(*keys)), plenty)
        assert agreed() == {"SCORED": 2, "FAILED#NOT_AN_IMAGE": 1}

    def test_a_failed_image_that_is_mended_moves_its_count(self, classifier: Classifier) -> None:
        start("r")
        keys = put(a=b"text", b=image_bytes())
        classifier(event(job(*keys)), plenty)
        put(a=image_bytes())
        classifier(event(job(*keys, Continued=True)), plenty)
        assert agreed() == {"SCORED": 2}
        assert "error" not in prediction("a")

    def test_two_codes_that_change_places_keep_their_counts(self, classifier: Classifier) -> None:
        start("r")
        keys = put(a=b"text", b=b"")
        classifier(event(job(*keys)), plenty)
        put(a=b"", b=b"text")
        classifier(event(job(*keys)), plenty)
        assert agreed() == {"FAILED#NOT_AN_IMAGE": 1, "FAILED#IMAGE_EMPTY": 1}
        assert prediction("a")["error"] == "IMAGE_EMPTY"

    def test_scored_is_never_overwritten(self, classifier: Classifier) -> None:
        start("r")
        keys = put(a=image_bytes())
        classifier(event(job(*keys)), plenty)
        before = prediction("a")
        put(a=b"text")
        classifier(event(job(*keys)), plenty)
        classifier(event(job(*keys, Continued=True)), plenty)
        assert prediction("a") == before
        assert agreed() == {"SCORED": 1}

    def test_a_continued_job_fetches_only_what_is_not_scored(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start("r")
        keys = put(a=image_bytes(), b=b"text")
        classifier(event(job(*keys)), plenty)
        fetched: list[str] = []
        fetch = Classifier._fetch

        def noted(self: Classifier, bucket: str, wanted: str, *args: Any) -> objects.Object:
            fetched.append(wanted)
            return fetch(self, bucket, wanted, *args)

        monkeypatch.setattr(Classifier, "_fetch", noted)
        classifier(event(job(*keys, Continued=True)), plenty)
        assert fetched == [key("b")]

    def test_a_conflict_is_written_after_all(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another copy of the job writes between this one's reading and writing, twice."""
        start("r")
        keys = put(a=image_bytes(), b=image_bytes(seed=1))
        other = RunTable(client("dynamodb"), TABLE)
        stored = RunTable.stored
        codes = iter(["NOT_AN_IMAGE", "IMAGE_EMPTY"])

        def overtaken(self: RunTable, run_id: str, wanted: Any) -> dict[str, Prediction]:
            found = stored(self, run_id, wanted)
            for code in codes:
                other.write(run_id, uid(run_id), [Prediction(keys[0], error=code)], found, {})
                break
            return found

        other.write("r", uid("r"), [Prediction(keys[0], error="IMAGE_CORRUPT")], {}, {})
        monkeypatch.setattr(RunTable, "stored", overtaken)
        assert failed(classifier(event(job(*keys)), plenty)) == []
        assert agreed() == {"SCORED": 2}


class TestRetried:
    def test_what_is_no_job_is_reported_and_the_others_are_done(self, classifier: Classifier) -> None:
        start("r")
        (a,) = put(a=image_bytes())
        bad = [
            b"\xff",
            b"[]",
            b"[" * 100_000,
            json.dumps(job("\ud800.png")).encode(),  # half a surrogate pair, which no key in UTF-8 has
            job(),
            job("x", run_id="a#b"),
            {"RunId": "r", "Keys": ["x"]},
            job(*map(str, range(100))),
            {"RunId": "r", "Bucket": BUCKET, "Keys": [1]},
        ]
        assert failed(classifier(event(*bad, job(a)), plenty)) == list("012345678")
        assert agreed() == {"SCORED": 1}

    @pytest.mark.parametrize(
        "error",
        [
            ClientError({"Error": {"Code": "SlowDown", "Message": f"on {PREFIX}b"}}, "GetObject"),
            ReadTimeoutError(endpoint_url=f"https://s3/{PREFIX}b"),
        ],
    )
    def test_a_fetch_that_may_pass_reports_its_job_and_keeps_the_rest(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
    ) -> None:
        start("r", expected=3)
        keys = put(a=image_bytes(), b=image_bytes(seed=1), c=image_bytes(seed=2))
        fetch = Classifier._fetch

        def once(self: Classifier, bucket: str, wanted: str, *args: Any) -> objects.Object:
            if wanted == key("b"):
                raise error
            return fetch(self, bucket, wanted, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Classifier, "_fetch", once)
            assert failed(classifier(event(job(*keys[:2]), job(keys[2])), plenty)) == ["0"]
        assert agreed() == {"SCORED": 2}
        assert PREFIX not in capsys.readouterr().out
        assert failed(classifier(event(job(*keys[:2])), plenty)) == []
        assert agreed() == {"SCORED": 3}
        assert table_items()[("RUN", "r")]["state"] == "COMPLETE"

    def test_a_403_is_missing_only_if_the_listing_says_so(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start("r")
        keys = [*put(a=image_bytes()), key("gone")]

        with monkeypatch.context() as patch:
            refuse(patch, "GetObject", "AccessDenied")
            assert failed(classifier(event(*(job(k) for k in keys)), plenty)) == ["0"]
        assert agreed() == {"FAILED#IMAGE_MISSING": 1}

    def test_a_bucket_that_is_gone_may_come_back(self, classifier: Classifier) -> None:
        start("r")
        assert failed(classifier(event({**job("a"), "Bucket": "gone"}), plenty)) == ["0"]

    @pytest.mark.parametrize("operation", ["GetItem", "BatchGetItem", "TransactWriteItems", "Query"])
    def test_a_table_that_throttles_reports_every_job(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        start("r", expected=2)
        keys = put(a=image_bytes(), b=image_bytes(seed=1))
        jobs = event(*(job(k, Continued=True) for k in keys))

        with monkeypatch.context() as patch:
            refuse(patch, operation, "ThrottlingException")
            assert failed(classifier(jobs, plenty)) == ["0", "1"]
        assert failed(classifier(jobs, plenty)) == []
        assert agreed() == {"SCORED": 2}
        assert table_items()[("RUN", "r")]["state"] == "COMPLETE"

    @pytest.mark.parametrize(
        ("operation", "code"),
        [
            ("GetObject", "SlowDown"),
            ("GetItem", "ThrottlingException"),
            ("BatchGetItem", "ProvisionedThroughputExceededException"),
            ("TransactWriteItems", "ThrottlingException"),
            ("Query", "ThrottlingException"),
        ],
    )
    def test_throttling_that_ends_before_the_deadline_costs_only_time(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, operation: str, code: str
    ) -> None:
        start("r", expected=1)
        (a,) = put(a=image_bytes())
        with monkeypatch.context() as patch:
            refuse(patch, operation, code, lambda: sum(waited) < 45)
            assert classifier(event(job(a, Continued=True)), plenty) == {"batchItemFailures": []}
        assert 45 <= sum(waited) < 100
        assert agreed() == {"SCORED": 1}

    @pytest.mark.parametrize(("reason", "longest"), [("ThrottlingError", 10), ("TransactionConflict", 5)])
    def test_a_cancelled_transaction_waits_longer_for_throttling_than_for_a_conflict(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, reason: str, longest: float
    ) -> None:
        start("r")
        (a,) = put(a=image_bytes())
        reasons = [{"Code": reason}, {"Code": "None"}]
        monkeypatch.setattr("runs.backoff.full_jitter", lambda seconds: seconds)
        monkeypatch.setattr(Patience.__init__, "__kwdefaults__", {"attempts": 8, "jitter": float})
        with monkeypatch.context() as patch:
            refuse(patch, "TransactWriteItems", "TransactionCanceledException", CancellationReasons=reasons)
            answer = classifier(event(job(a)), plenty)
        assert max(waited) == longest
        assert 90 - longest < sum(waited) < 100  # until ten seconds are left
        assert failed(answer) == ["0"]

    def test_a_refusal_that_will_not_pass_is_reported_at_once(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start("r")
        (a,) = put(a=image_bytes())
        refuse(monkeypatch, "TransactWriteItems", "AccessDeniedException")
        answer = classifier(event(job(a)), plenty)
        assert waited == []
        assert failed(answer) == ["0"]

    def test_ten_seconds_before_the_deadline_it_stops(
        self, classifier: Classifier, model: Brightness
    ) -> None:
        start("r", expected=4)
        keys = put(**{f"i{n}": image_bytes(seed=n) for n in range(4)})

        def left() -> int:
            return 60_000 if model.scored < 2 else 9_999

        assert failed(classifier(event(job(*keys[:2]), job(*keys[2:])), left)) == ["1"]
        assert model.scored == 2
        assert agreed() == {"SCORED": 2}

    def test_a_run_pinned_to_another_model_waits(self, classifier: Classifier, capsys: Any) -> None:
        start("r", sha256="ee" * 32)
        assert failed(classifier(event(job(*put(a=image_bytes()))), plenty)) == ["0"]
        assert "pinned to brightness:1.0.0" in capsys.readouterr().out
        assert agreed() == {}


class TestRuns:
    def test_the_last_prediction_completes_the_run_once(self, classifier: Classifier) -> None:
        start("r", expected=2)
        a, b = put(a=image_bytes(), b=b"")
        classifier(event(job(a)), plenty)
        assert table_items()[("RUN", "r")]["state"] == "SCORING"
        classifier(event(job(b)), plenty)
        run = table_items()[("RUN", "r")]
        assert run["state"] == "COMPLETE"
        classifier(event(job(a), job(b)), plenty)
        assert table_items()[("RUN", "r")] == run

    def test_of_all_who_see_the_last_count_one_wins(self, classifier: Classifier) -> None:
        start("r", expected=1)
        classifier(event(job(*put(a=image_bytes()))), plenty)
        start("r", expected=1)
        table = RunTable(client("dynamodb"), TABLE)
        assert [table.complete("r", by) for by in ("a", "b", "c")] == [{"SCORED": 1}, None, None]

    @pytest.mark.usefixtures("aws")
    def test_completion_is_announced_once(self, model: Brightness) -> None:
        start("r", expected=2)
        announced: list[dict[str, Any]] = []
        classifier = make(model, announced=announced)
        for name, data in (("a", image_bytes()), ("b", b"")):
            assert announced == []
            classifier(event(job(*put(**{name: data}))), plenty)
        classifier(event(job(key("a"), key("b"))), plenty)
        (entry,) = announced
        assert (entry["Source"], entry["DetailType"]) == ("chest-xray-inference", "Run Complete")
        assert json.loads(entry["Detail"]) == {"RunId": "r", "Scored": 1, "Failed": 1}

    def test_what_was_not_announced_is_announced_by_the_next_delivery(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        start("r", expected=1)
        delivery = event(job(*put(a=image_bytes())))
        with monkeypatch.context() as patch:
            refuse(patch, "PutEvents", "ThrottlingException")
            assert failed(classifier(delivery, plenty)) == ["0"]
        assert "PutEvents: ThrottlingException" in capsys.readouterr().out
        assert table_items()[("RUN", "r")]["state"] == "SCORING"
        assert failed(classifier(delivery, plenty)) == []
        assert table_items()[("RUN", "r")]["state"] == "COMPLETE"
        assert agreed() == {"SCORED": 1}

    def test_a_run_still_listed_is_not_complete(self, classifier: Classifier) -> None:
        start("r")
        classifier(event(job(*put(a=image_bytes()))), plenty)
        assert table_items()[("RUN", "r")]["state"] == "LISTING"

    @pytest.mark.parametrize("state", ["CANCELLED", "DELETING", None])
    def test_a_cancelled_or_deleted_runs_jobs_are_dropped_without_a_fetch(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, state: str | None
    ) -> None:
        if state:
            start("r", state=state, sha256="ee" * 32)  # also where another model was deployed meanwhile
        monkeypatch.setattr(Classifier, "_fetch", lambda *_: pytest.fail("fetched"))
        assert failed(classifier(event(job(*put(a=image_bytes()))), plenty)) == []
        assert agreed() == {}

    def test_jobs_of_a_deleted_run_are_not_those_of_another_with_its_name(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start("r", expected=1)
        monkeypatch.setattr(Classifier, "_fetch", lambda *_: pytest.fail("fetched"))
        assert failed(classifier(event(job(*put(a=image_bytes()), RunUid="another")), plenty)) == []
        assert agreed() == {}

    def test_a_run_deleted_while_its_images_are_scored_takes_no_prediction(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        """Nor does another of its name, which has been begun since."""
        for begun_again in (False, True):
            start("r", expected=2)
            write = RunTable.write

            def late(*arguments: Any, begun_again: bool = begun_again, write: Any = write) -> None:
                table = boto3.resource("dynamodb").Table(TABLE)
                for pk, sk in table_items():
                    table.delete_item(Key={"pk": pk, "sk": sk})
                if begun_again:
                    begin_run("r", uid="another", state="LISTING")
                write(*arguments)

            delivery = event(job(*put(a=image_bytes(), b=b"")))
            with monkeypatch.context() as patch:
                patch.setattr(RunTable, "write", late)
                assert failed(classifier(delivery, plenty)) == ["0"]
            assert "run r was deleted" in capsys.readouterr().out
            assert failed(classifier(delivery, plenty)) == []
            assert {pk for pk, _ in table_items()} == (
                {layout.RUNS, layout.counters_partition("r")} if begun_again else set()
            )
            assert agreed() == {}


class TestDirect:
    def test_answers_its_predictions_and_stores_nothing(self, classifier: Classifier) -> None:
        put(a=image_bytes(), b=b"text")
        jobs = {"Jobs": [{"RunId": "one", "Key": key("a")}, {"RunId": "one", "Key": key("b")}]}
        answer = classifier(jobs, plenty)["Predictions"]
        assert answer[1] == {"RunId": "one", "Key": key("b"), "Status": "FAILED", "Error": "NOT_AN_IMAGE"}
        assert (answer[0]["RunId"], answer[0]["Key"], answer[0]["Status"]) == ("one", key("a"), "SCORED")
        assert 0 < answer[0]["Scores"]["bright"] < 1
        json.dumps(answer)
        assert table_items() == {}

    def test_an_image_is_scored_as_in_a_run(self, classifier: Classifier) -> None:
        keys = put(a=image_bytes())
        start("r")
        classifier(event(job(*keys)), plenty)
        (answer,) = classifier({"Jobs": [{"RunId": "r", "Key": keys[0]}]}, plenty)["Predictions"]
        assert answer["Scores"] == {"bright": float(prediction("a")["scores"]["bright"])}
        assert agreed() == {"SCORED": 1}

    def test_what_was_not_done_is_an_error_not_an_empty_answer(self, classifier: Classifier) -> None:
        put(a=image_bytes())
        with pytest.raises(NotDone, match="too little time left"):
            classifier({"Jobs": [{"RunId": "one", "Key": key("a")}]}, lambda: 5_000)

    def test_an_error_of_aws_is_raised_without_its_message(
        self, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse(monkeypatch, "GetObject", "SlowDown")
        with pytest.raises(NotDone, match=r"^GetObject: SlowDown$"):
            classifier({"Jobs": [{"RunId": "one", "Key": key("a")}]}, plenty)

    @pytest.mark.parametrize(
        "jobs",
        [
            {},
            {"Jobs": []},
            {"Jobs": "a"},
            {"Jobs": [1]},
            {"Jobs": [{"RunId": "r"}]},
            {"Jobs": [{"Key": "k"}]},
            {"Jobs": [{"RunId": "r", "Key": "\ud800.png"}]},
        ],
    )
    def test_an_event_that_is_none(self, classifier: Classifier, jobs: Any) -> None:
        with pytest.raises(JobError, match="expected"):
            classifier(jobs, plenty)


def test_more_objects_than_fetches_keep_their_order(classifier: Classifier) -> None:
    """Each score goes to its own key, over jobs and batches and past a failed image."""
    start("r")
    shades = {f"i{n}": n * 5 for n in range(45)}
    for name, shade in shades.items():
        file = io.BytesIO()
        Image.new("L", (64, 64), shade).save(file, "PNG")
        put(**{name: b"" if shade == 100 else file.getvalue()})
    names = list(shades)
    classifier(event(*(job(*map(key, names[i : i + 7])) for i in range(0, 45, 7))), plenty)
    scored = {name: item["scores"] for (_, name), item in table_items().items() if "scores" in item}
    assert scored == {
        key(name): {"bright": pytest.approx(Decimal(shade / 255), abs=Decimal("1e-6"))}
        for name, shade in shades.items()
        if shade != 100
    }
