"""Faults that AWS can have, injected between boto3 and moto.

botocore signs a request and then emits the event `before-send`, which moto answers. `intercept_aws` stands
between the two, so a fault meets the real clients with their real retries. A fault that is injected after
moto has answered is a request that AWS executed although the client gets no answer.
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
from urllib.parse import urlsplit

from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError
from botocore.retries.quota import RetryQuota
from moto.core.botocore_stubber import BotocoreStubber, MockRawResponse
from urllib3.exceptions import ReadTimeoutError as BodyTimeoutError


class Killed(BaseException):
    """The function's process ended at once. It is no Exception, because no handler runs after a kill."""


@dataclass(frozen=True)
class Request:
    """One attempt of an AWS call, as botocore is about to send it. Each retry of the SDK is a new request."""

    operation: str
    url: str
    body: Any  # decoded JSON; None for S3
    execute: Callable[[Any], AWSResponse]  # sends a body to moto; it may hold less than `body`

    def forward(self) -> AWSResponse:
        """Execute the request as it is. Returns moto's answer."""
        return self.execute(self.body)

    def answer(self, status: int, document: bytes) -> AWSResponse:
        """An answer that moto did not give."""
        return AWSResponse(self.url, status, HTTPHeaders(), MockRawResponse(document))

    def error(self, status: int, code: str, **fields: Any) -> AWSResponse:
        """An error answer: XML for S3, JSON for the other services."""
        if self.body is None:
            return self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())
        return self.answer(status, json.dumps({"__type": code, "message": "injected", **fields}).encode())


class _StalledBody(BytesIO):
    """A body that does not arrive before the client's timeout."""

    def readinto(self, buffer: Any) -> int:
        raise BodyTimeoutError(None, "", "injected")  # type: ignore[arg-type]

    def read(self, size: int | None = -1) -> bytes:
        raise BodyTimeoutError(None, "", "injected")  # type: ignore[arg-type]


def _throttle(request: Request) -> AWSResponse:
    if request.body is None:
        return request.error(503, "SlowDown")
    if request.operation == "PutEvents":
        return request.error(400, "ThrottlingException")
    return request.error(400, "ProvisionedThroughputExceededException")


def _fail(request: Request) -> AWSResponse:
    return request.error(500, "InternalError" if request.body is None else "InternalServerError")


def _forbid(request: Request) -> AWSResponse:
    """403. S3 also answers it for a missing key, if the role may not list the bucket."""
    return request.error(403 if request.body is None else 400, "AccessDenied")


def _refuse_connection(request: Request) -> AWSResponse:
    raise ConnectTimeoutError(endpoint_url=request.url)


def _lose_answer(request: Request) -> AWSResponse:
    request.forward()
    raise ReadTimeoutError(endpoint_url=request.url)


def _kill_before(request: Request) -> AWSResponse:
    raise Killed


def _kill_after(request: Request) -> AWSResponse:
    request.forward()
    raise Killed


def _refuse_every_second_record(request: Request) -> AWSResponse:
    """Kinesis API, PutRecords: each record succeeds or fails on its own. Here the first one always fails."""
    records = request.body["Records"]
    refused = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "injected"}
    answers = [refused] * len(records)
    if records[1::2]:
        taken = json.loads(request.execute({**request.body, "Records": records[1::2]}).content)
        answers[1::2] = taken["Records"]
    failed = len(records[::2])
    return request.answer(200, json.dumps({"FailedRecordCount": failed, "Records": answers}).encode())


def _refuse_event(request: Request) -> AWSResponse:
    """EventBridge API, PutEvents: the answer to a refused entry has status 200."""
    refused = {"ErrorCode": "InternalFailure", "ErrorMessage": "injected"}
    return request.answer(200, json.dumps({"FailedEntryCount": 1, "Entries": [refused]}).encode())


def _skip_every_second_key(request: Request) -> AWSResponse:
    """DynamoDB API, BatchGetItem: keys that were not read are in `UnprocessedKeys`."""
    answer = json.loads(request.forward().content)
    ((table, asked),) = request.body["RequestItems"].items()
    left = asked["Keys"][::2]
    names = [key["sk"] for key in left]
    found = [item for item in answer["Responses"][table] if item["sk"] not in names]
    answer |= {"Responses": {table: found}, "UnprocessedKeys": {table: {**asked, "Keys": left}}}
    return request.answer(200, json.dumps(answer).encode())


def _report_conflict(request: Request) -> AWSResponse:
    """DynamoDB API, TransactWriteItems: another transaction was changing the counter."""
    reasons = [{"Code": "None"} for _ in request.body["TransactItems"]]
    reasons[-1] = {"Code": "TransactionConflict", "Message": "injected"}
    return request.error(400, "TransactionCanceledException", CancellationReasons=reasons)


def _cut_body(request: Request) -> AWSResponse:
    """The connection ends after half of the object: the body is shorter than its Content-Length."""
    answer = request.forward()
    if answer.status_code == 200:
        body = answer.raw.read()
        answer.headers["content-length"] = str(len(body) + 1)
        answer.raw = MockRawResponse(body[: len(body) // 2])
    return answer


def _stall_body(request: Request) -> AWSResponse:
    answer = request.forward()
    if answer.status_code == 200:
        answer.raw = _StalledBody()
    return answer


# How each of these calls can succeed in part.
PARTIAL_ANSWERS = {
    "PutRecords": _refuse_every_second_record,
    "PutEvents": _refuse_event,
    "BatchGetItem": _skip_every_second_key,
    "TransactWriteItems": _report_conflict,
    "GetObject": _cut_body,
}


def _do_in_part(request: Request) -> AWSResponse:
    return PARTIAL_ANSWERS[request.operation](request)


FAULT_KINDS: dict[str, Callable[[Request], AWSResponse]] = {
    "throttled": _throttle,
    "server error": _fail,
    "forbidden": _forbid,
    "no connection": _refuse_connection,
    "in part": _do_in_part,
    "stalled": _stall_body,
    "lost answer": _lose_answer,
    "killed before": _kill_before,
    "killed after": _kill_after,
}


def fault_kinds(operation: str) -> list[str]:
    """The kinds of fault that a call of this operation can meet."""
    possible = {"in part": operation in PARTIAL_ANSWERS, "stalled": operation == "GetObject"}
    return [kind for kind in FAULT_KINDS if possible.get(kind, True)]


@contextmanager
def intercept_aws(respond: Callable[[Request], AWSResponse]) -> Iterator[None]:
    """Let `respond` answer every request to moto, and let `time.sleep` return at once.

    The SDK's retry quota is switched off. It lasts from call to call, so the retries of one schedule would
    change the next one.
    """
    moto_answer = BotocoreStubber.__call__

    def before_send(self: BotocoreStubber, event_name: str, request: Any, **_: Any) -> AWSResponse | None:
        is_local_aws = urlsplit(request.url).hostname == "127.0.0.1"  # of a test in the same process
        if not self.enabled or is_local_aws:
            return None
        operation = event_name.rpartition(".")[2]
        is_json = b"json" in (request.headers.get("Content-Type") or b"")

        def execute(body: Any) -> AWSResponse:
            if is_json:
                request.body = json.dumps(body).encode()
            answer = moto_answer(self, event_name, request)
            assert answer, f"moto does not answer {operation}"  # noqa: S101
            return answer

        return respond(
            Request(operation, request.url, json.loads(request.body) if is_json else None, execute)
        )

    with (
        patch.object(BotocoreStubber, "__call__", before_send),
        patch.object(RetryQuota, "acquire", lambda self, amount: True),
        patch.object(time, "sleep", lambda seconds: None),
    ):
        yield
