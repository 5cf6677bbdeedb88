"""A faulty network: an HTTP proxy in front of local AWS that injects faults and records what AWS executed."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# The share of requests that meet a fault. A run sends only a few requests to Kinesis and EventBridge.
FAULT_RATES = {"S3": 0.15, "DynamoDB": 0.2, "Kinesis": 0.7, "AWSEvents": 0.5}
LATE_SECONDS = 1.0  # the longest delay of an answer

_TRANSACT = "TransactWriteItems"
_RESET, LOST_ANSWER, _LATE = (
    "connection reset before the request",
    "answer lost after the request",
    "answer late",
)
_ANY_SERVICE = (_RESET, LOST_ANSWER, _LATE)
_CUT, _IN_PART = "answer cut short", "done in part"
# The faults of each service, and more faults of single operations. "<status> <code>" is an error answer.
FAULTS: Mapping[str, Sequence[str]] = {
    "S3": ("503 SlowDown", "500 InternalError", *_ANY_SERVICE),
    "S3 GetObject": ("403 AccessDenied", _CUT),
    "DynamoDB": (
        "400 ThrottlingException",
        "400 ProvisionedThroughputExceededException",
        "500 InternalServerError",
        *_ANY_SERVICE,
    ),
    f"DynamoDB {_TRANSACT}": ("400 TransactionCanceledException", "400 TransactionInProgressException"),
    "DynamoDB BatchGetItem": (_IN_PART,),
    "Kinesis": ("400 ProvisionedThroughputExceededException", "500 InternalFailure", *_ANY_SERVICE),
    "Kinesis PutRecords": (_IN_PART,),
    "AWSEvents": ("400 ThrottlingException", "500 InternalException", *_ANY_SERVICE),
    "AWSEvents PutEvents": (_IN_PART,),
}


@dataclass(frozen=True)
class Request:
    """One HTTP request to the endpoint."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def service(self) -> str:
        """DynamoDB, Kinesis, AWSEvents or S3; empty for other services, which meet no faults."""
        target = self.headers.get("X-Amz-Target", "")
        if target:
            return re.split(r"[_.]", target)[0]
        return "S3" if "/s3/" in self.headers.get("Authorization", "") else ""

    @property
    def operation(self) -> str:
        """The name of the operation in the API. Of the operations of S3, only GetObject has one here."""
        target = self.headers.get("X-Amz-Target", "")
        if target:
            return target.partition(".")[2]
        url = urlsplit(self.path)
        plain = self.method == "GET" and url.path.strip("/").count("/") and "list-type" not in url.query
        return "GetObject" if plain else ""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class FaultyEndpoint(ThreadingHTTPServer):
    """Forwards requests to the address `host:port`. Inside `with injecting():`, some of them meet a fault."""

    daemon_threads = True

    def __init__(self, address: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._injects = False
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._address = address
        self._random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._lock = threading.Lock()
        self._scored: dict[str, set[tuple[str, str]]] = defaultdict(set)  # run -> (pk, sk) of its predictions
        self._rewritten: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._tokens: set[str] = set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Stop taking requests, and free the port."""
        self.shutdown()
        self.server_close()

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Ignore a lost connection: the client was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            raise

    @contextmanager
    def injecting(self) -> Iterator[None]:
        """Inject faults while the block runs."""
        self._injects = True
        try:
            yield
        finally:
            self._injects = False

    def rewritten(self, run: str) -> int:
        """How often a SCORED prediction of the run was written again."""
        return self._rewritten[run]

    def announced(self, run: str) -> int:
        """How many Run Complete events of the run the event bus has accepted."""
        return self._events[run]

    def draw_fault(self, request: Request) -> str:
        """Draw the fault that this request meets, and count it. Empty: no fault."""
        service, operation = request.service, request.operation
        with self._lock:
            self.requests[f"{service} {operation}".strip()] += 1
            if not self._injects or self._random.random() >= FAULT_RATES.get(service, 0):
                return ""
            fault = self._random.choice((*FAULTS[service], *FAULTS.get(f"{service} {operation}", ())))
            self.faults[f"{service}: {fault}"] += 1
            return fault

    def random(self) -> float:
        """A random number from 0 to 1."""
        with self._lock:
            return self._random.random()

    def forward(self, request: Request) -> Answer:
        """Send the request to the real endpoint. Raises OSError and HTTPException."""
        # No timeout: an invocation of the job creator can take minutes. The client has a timeout of its own.
        connection = http.client.HTTPConnection(self._address)
        try:
            connection.request(request.method, request.path, request.body, dict(request.headers))
            found = connection.getresponse()
            answer = Answer(found.status, dict(found.getheaders()), found.read())
        finally:
            connection.close()
        if answer.status == http.HTTPStatus.OK:
            self._record(request)
        return answer

    def forward_in_part(self, request: Request) -> Answer:
        """Let AWS execute a part of a batch. Returns the answer of a service that did only that part."""
        asked = json.loads(request.body)
        if request.operation == "BatchGetItem":
            ((table, keys),) = asked["RequestItems"].items()
            half = (len(keys["Keys"]) + 1) // 2
            some: dict[str, Any] = {"RequestItems": {table: {**keys, "Keys": keys["Keys"][:half]}}}
            rest = {table: {**keys, "Keys": keys["Keys"][half:]}} if keys["Keys"][half:] else {}
            return self._forward_json(request, some, UnprocessedKeys=rest)
        name, results = ("Records", "Records") if "Records" in asked else ("Entries", "Entries")
        refused = [self.random() < 0.5 for _ in asked[name]]
        refused[0] = refused[0] or not any(refused)
        some = {**asked, name: [entry for entry, no in zip(asked[name], refused, strict=True) if not no]}
        taken: Any = iter(())
        if some[name]:
            taken = iter(json.loads(self._forward_json(request, some).body)[results])
        code = "ProvisionedThroughputExceededException" if name == "Records" else "ThrottlingException"
        no = {"ErrorCode": code, "ErrorMessage": "injected"}
        found = [no if refusal else next(taken) for refusal in refused]
        count = "FailedRecordCount" if name == "Records" else "FailedEntryCount"
        return _json(http.HTTPStatus.OK, {count: sum(refused), results: found})

    def _forward_json(self, request: Request, document: Any, **changes: Any) -> Answer:
        """Send the request with another body, and change fields of the answer. Raises as `forward` does."""
        headers = {name: value for name, value in request.headers.items() if name != "Content-Length"}
        answer = self.forward(replace(request, headers=headers, body=json.dumps(document).encode()))
        if answer.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"{request.operation}: {answer.status}")
        return _json(answer.status, json.loads(answer.body) | changes) if changes else answer

    def _record(self, request: Request) -> None:
        """Record what AWS has executed: predictions that it has written, events that it has accepted."""
        if request.operation == _TRANSACT:
            asked = json.loads(request.body)
            puts = [action["Put"]["Item"] for action in asked["TransactItems"] if "Put" in action]
            puts = [item for item in puts if "status" in item]  # neither the item of a run nor its counters
            with self._lock:
                if asked["ClientRequestToken"] in self._tokens:
                    return  # a retry with the same token, which DynamoDB does not execute again
                self._tokens.add(asked["ClientRequestToken"])
                for item in puts:
                    key = pk, _ = item["pk"]["S"], item["sk"]["S"]
                    run = pk.split("#")[1]
                    self._rewritten[run] += key in self._scored[run]
                    if item["status"]["S"] == "SCORED":
                        self._scored[run].add(key)
        elif request.operation == "PutEvents":
            for entry in json.loads(request.body)["Entries"]:
                with self._lock:
                    self._events[json.loads(entry["Detail"])["RunId"]] += 1


class _Connection(BaseHTTPRequestHandler):
    server: FaultyEndpoint
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the head and the body are two small packets

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers), body)
        fault = self.server.draw_fault(request)
        if fault == _RESET:
            self._reset()
            return
        if code := re.fullmatch(r"(\d{3}) (\w+)", fault):
            self._send(_error(request, int(code[1]), code[2]))
            return
        try:
            forward = self.server.forward_in_part if fault == _IN_PART else self.server.forward
            answer = forward(request)
        except (OSError, http.client.HTTPException):  # MiniStack is stopping
            self._reset()
            return
        if fault == LOST_ANSWER:
            self._reset()
            return
        if fault == _LATE:
            time.sleep(self.server.random() * LATE_SECONDS)
        self._send(answer, cut=fault == _CUT)

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - http.server's names

    def _send(self, answer: Answer, *, cut: bool = False) -> None:
        with suppress(ConnectionError):  # the client was killed
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.close_connection = True

    def _reset(self) -> None:
        """End the connection with RST, so that nothing in its buffers is sent any more."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        """Log nothing: a path can identify a patient."""


def _error(request: Request, status: int, code: str) -> Answer:
    """An error answer in the form of the service."""
    if request.service == "S3":
        body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        return Answer(status, {"Content-Type": "application/xml"}, body)
    document: dict[str, Any] = {"__type": code, "message": "injected"}
    if code == "TransactionCanceledException":
        reasons: list[dict[str, str]] = [{"Code": "None"} for _ in json.loads(request.body)["TransactItems"]]
        reasons[-1] = {"Code": "TransactionConflict", "Message": "injected"}  # the counter
        document["CancellationReasons"] = reasons
    return _json(status, document)


def _json(status: int, document: Any) -> Answer:
    return Answer(status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(document).encode())
