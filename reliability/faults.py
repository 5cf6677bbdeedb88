"""Faults of AWS on the way to moto: botocore's last event before the wire answers, breaks off, or kills.

botocore signs a request and emits `before-send`; moto answers that event. `aws` stands between the two, so a
fault meets the real clients with their real retries, and a fault after moto has answered is one where the
write was made and nobody knows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from unittest.mock import patch

from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError
from botocore.retries.quota import RetryQuota
from moto.core.botocore_stubber import BotocoreStubber, MockRawResponse
from urllib3.exceptions import ReadTimeoutError as BodyTimeoutError


class Killed(BaseException):
    """The function's process ended at once. No handler catches it, as none runs after a kill."""


@dataclass(frozen=True)
class Request:
    """One attempt of an AWS call, as botocore is about to send it: the SDK's own retries come as more."""

    operation: str
    url: str
    body: Any  # of the JSON protocols; None for S3
    carry_out: Callable[[Any], AWSResponse]  # with this body, which may be less than was sent

    def forward(self) -> AWSResponse:
        """What moto answers to it."""
        return self.carry_out(self.body)

    def answer(self, status: int, document: bytes) -> AWSResponse:
        """An answer that moto did not give."""
        return AWSResponse(self.url, status, HTTPHeaders(), MockRawResponse(document))

    def error(self, status: int, code: str, **fields: Any) -> AWSResponse:
        """An error as S3's XML or the other services' JSON have it."""
        if self.body is None:
            return self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())
        return self.answer(status, json.dumps({"__type": code, "message": "injected", **fields}).encode())


class _StalledBody(BytesIO):
    """A body that stops halfway, and no more of which comes before the client's timeout."""

    def readinto(self, buffer: Any) -> int:
        raise BodyTimeoutError(None, "", "injected")  # type: ignore[arg-type]

    def read(self, size: int | None = -1) -> bytes:
        raise BodyTimeoutError(None, "", "injected")  # type: ignore[arg-type]


def _throttled(request: Request) -> AWSResponse:
    if request.body is None:
        return request.error(503, "SlowDown")
    if request.operation == "PutEvents":
        return request.error(400, "ThrottlingException")
    return request.error(400, "ProvisionedThroughputExceededException")


def _server_error(request: Request) -> AWSResponse:
    return request.error(500, "InternalError" if request.body is None else "InternalServerError")


def _forbidden(request: Request) -> AWSResponse:
    """403. S3 also gives it, for a missing key, to a role that may not list the bucket."""
    return request.error(403 if request.body is None else 400, "AccessDenied")


def _no_connection(request: Request) -> AWSResponse:
    raise ConnectTimeoutError(endpoint_url=request.url)


def _lost_answer(request: Request) -> AWSResponse:
    request.forward()
    raise ReadTimeoutError(endpoint_url=request.url)


def _killed_before(request: Request) -> AWSResponse:
    raise Killed


def _killed_after(request: Request) -> AWSResponse:
    request.forward()
    raise Killed


def _every_second_refused(request: Request) -> AWSResponse:
    """Kinesis API, PutRecords: each record succeeds or fails by itself. The first fails always."""
    records = request.body["Records"]
    refused = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "injected"}
    answers = [refused] * len(records)
    if records[1::2]:
        taken = json.loads(request.carry_out({**request.body, "Records": records[1::2]}).content)
        answers[1::2] = taken["Records"]
    failed = len(records[::2])
    return request.answer(200, json.dumps({"FailedRecordCount": failed, "Records": answers}).encode())


def _event_refused(request: Request) -> AWSResponse:
    """EventBridge API, PutEvents: a refused entry is in an answer of 200."""
    refused = {"ErrorCode": "InternalFailure", "ErrorMessage": "injected"}
    return request.answer(200, json.dumps({"FailedEntryCount": 1, "Entries": [refused]}).encode())


def _every_second_unprocessed(request: Request) -> AWSResponse:
    """DynamoDB API, BatchGetItem: what it did not get to is in `UnprocessedKeys`."""
    answer = json.loads(request.forward().content)
    ((table, asked),) = request.body["RequestItems"].items()
    left = asked["Keys"][::2]
    names = [key["sk"] for key in left]
    found = [item for item in answer["Responses"][table] if item["sk"] not in names]
    answer |= {"Responses": {table: found}, "UnprocessedKeys": {table: {**asked, "Keys": left}}}
    return request.answer(200, json.dumps(answer).encode())


def _conflict(request: Request) -> AWSResponse:
    """DynamoDB API, TransactWriteItems: another transaction was at the counter."""
    reasons = [{"Code": "None"} for _ in request.body["TransactItems"]]
    reasons[-1] = {"Code": "TransactionConflict", "Message": "injected"}
    return request.error(400, "TransactionCanceledException", CancellationReasons=reasons)


def _cut_off(request: Request) -> AWSResponse:
    """The connection ends after half of the object, as an answer of another length than it says."""
    answer = request.forward()
    if answer.status_code == 200:
        body = answer.raw.read()
        answer.headers["content-length"] = str(len(body) + 1)
        answer.raw = MockRawResponse(body[: len(body) // 2])
    return answer


def _stalled(request: Request) -> AWSResponse:
    answer = request.forward()
    if answer.status_code == 200:
        answer.raw = _StalledBody()
    return answer


# What these calls have of success by halves.
IN_PART = {
    "PutRecords": _every_second_refused,
    "PutEvents": _event_refused,
    "BatchGetItem": _every_second_unprocessed,
    "TransactWriteItems": _conflict,
    "GetObject": _cut_off,
}


def _in_part(request: Request) -> AWSResponse:
    return IN_PART[request.operation](request)


KINDS: dict[str, Callable[[Request], AWSResponse]] = {
    "throttled": _throttled,
    "server error": _server_error,
    "forbidden": _forbidden,
    "no connection": _no_connection,
    "in part": _in_part,
    "stalled": _stalled,
    "lost answer": _lost_answer,
    "killed before": _killed_before,
    "killed after": _killed_after,
}


def kinds(operation: str) -> list[str]:
    """The kinds of fault that a call can meet."""
    only = {"in part": operation in IN_PART, "stalled": operation == "GetObject"}
    return [kind for kind in KINDS if only.get(kind, True)]


@contextmanager
def aws(meet: Callable[[Request], AWSResponse]) -> Iterator[None]:
    """Have `meet` answer every request to moto; time does not pass where somebody sleeps.

    The SDK's quota of retries, which spans calls, is lifted: otherwise what one schedule used up would change
    the next.
    """
    answer = BotocoreStubber.__call__

    def before_send(self: BotocoreStubber, event_name: str, request: Any, **_: Any) -> AWSResponse | None:
        if not self.enabled:
            return None
        operation = event_name.rpartition(".")[2]
        is_json = b"json" in (request.headers.get("Content-Type") or b"")

        def carry_out(body: Any) -> AWSResponse:
            if is_json:
                request.body = json.dumps(body).encode()
            found = answer(self, event_name, request)
            assert found, f"moto does not play {operation}"  # noqa: S101
            return found

        return meet(Request(operation, request.url, json.loads(request.body) if is_json else None, carry_out))

    with (
        patch.object(BotocoreStubber, "__call__", before_send),
        patch.object(RetryQuota, "acquire", lambda self, amount: True),
        patch.object(time, "sleep", lambda seconds: None),
    ):
        yield
