"""Arrivals on local AWS: from uploads to a closed day, with events that are lost, doubled and late."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from arrivals import reconciler
from support import client, counts, image_bytes, recounted, table_items, wait_for

from cxr import Stack, status
from cxr.arrivals import delay, today
from cxr.local_aws.local_aws import LocalAws
from cxr.runs import run_table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("arrivals")]

IMAGES, OVERWRITTEN, DELETED = 500, 10, 10
SHARE = 25  # of the events that are lost, doubled or late: 5 % each
NAMES = ("a b", "a+b", "a%20b", "ü", "plain")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with LocalAws() as aws:
        yield Stack.of(aws.deploy("arrivals=on", "data=destroy"))


def put(stack: Stack, number: int, seed: int | None = None) -> tuple[str, str]:
    """Upload an image. Its key and its ETag."""
    key = f"{stack.prefix}site/{NAMES[number % len(NAMES)]} {number}.png"
    body = image_bytes((64, 64), seed=number if seed is None else seed)
    answer = client("s3").put_object(Bucket=stack.images_bucket, Key=key, Body=body)
    return key, answer["ETag"].strip('"')


def listen(stack: Stack, on: bool) -> None:
    """Switch the mapping that takes the events out of their queue."""
    client("lambda").update_event_source_mapping(UUID=stack.arrivals_mapping, Enabled=on)


def taken_out(queue: str) -> list[str]:
    """All messages of a queue; afterwards it is empty."""
    found: dict[str, str] = {}
    sqs = client("sqs")
    while messages := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            found[message["MessageId"]] = message["Body"]
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return list(found.values())


def test_an_upload_is_scored(stack: Stack) -> None:
    for number in range(20):
        put(stack, 10_000 + number)
    wait_for(lambda: arrived_and_done(stack) == (20, 20), "20 images scored", 120)
    assert delay(run_table(stack).predictions(today()))


def arrived_and_done(stack: Stack) -> tuple[int, int]:
    run = run_table(stack).run(today())
    return (run.arrived, status(stack, today()).done) if run else (0, 0)


def test_every_object_has_one_prediction_after_the_reconciliation(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = client("sqs").get_queue_url(QueueName=queue_name(stack))["QueueUrl"]
    listen(stack, False)
    etags = dict(put(stack, number) for number in range(IMAGES))
    early = list(etags)
    for number in range(OVERWRITTEN):
        key, etag = put(stack, number, seed=IMAGES + number)
        etags[key] = etag
    for key in early[OVERWRITTEN : OVERWRITTEN + DELETED]:
        client("s3").delete_object(Bucket=stack.images_bucket, Key=key)
    events: list[str] = []

    def all_there() -> bool:
        events.extend(taken_out(queue))
        return len(events) >= IMAGES + OVERWRITTEN

    wait_for(all_there, "all events in the queue", 60)
    random.Random(0).shuffle(events)
    lost, doubled, late = (events[i * SHARE : (i + 1) * SHARE] for i in range(3))
    sqs = client("sqs")
    for event in [*events[SHARE:], *doubled]:
        if event not in late:
            sqs.send_message(QueueUrl=queue, MessageBody=event)
    listen(stack, True)
    most = 20 + IMAGES - 2 * SHARE - 2 * OVERWRITTEN
    wait_for(lambda: status(stack, today()).done >= most, "most images scored", 240)
    wait_for(lambda: status(stack, today()).waiting == 0, "no image waits", 120)

    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    monkeypatch.setattr(reconciler, "_today", lambda: tomorrow)
    answer = reconciler_here(stack)({"RunId": today()}, lambda: 900_000)
    assert 0 < answer["Runs"][today()]["Missed"] <= len(lost) + len(late)
    for event in late:
        sqs.send_message(QueueUrl=queue, MessageBody=event)
    wait_for(lambda: status(stack, today()).state == "COMPLETE", "the day complete", 120)

    def quiet() -> bool:
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=list(names))["Attributes"]
        return all(found[name] == "0" for name in names)

    wait_for(quiet, "the late events taken", 60)
    items = table_items(stack.table)
    stored = {key: item for (pk, key), item in items.items() if pk.startswith(f"RUN#{today()}#")}
    found = {key: item for key, item in stored.items() if int(key.rpartition(" ")[2][:-4]) < IMAGES}
    gone = set(early[OVERWRITTEN : OVERWRITTEN + DELETED])
    for key, etag in etags.items():
        if key in gone:
            assert key not in found or found[key]["error"] == "IMAGE_MISSING"
        else:
            assert (found[key]["status"], found[key]["etag"]) == ("SCORED", etag)
    assert found.keys() <= etags.keys()
    assert counts(items, today()) == recounted(items, today())
    run = run_table(stack).run(today())
    assert run
    assert run.expected == run.arrived == len(stored)
    assert status(stack, today()).state == "COMPLETE"


def queue_name(stack: Stack) -> str:
    (mapping,) = [client("lambda").get_event_source_mapping(UUID=stack.arrivals_mapping)]
    return str(mapping["EventSourceArn"]).rpartition(":")[2]


def reconciler_here(stack: Stack) -> reconciler.Reconciler:
    """The deployed reconciler, but in this process, in which the clock can be another."""
    variables = client("lambda").get_function_configuration(FunctionName=stack.reconciler)["Environment"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables["Variables"].items():
            patch.setenv(name, value)
        return reconciler.setup.__wrapped__()
