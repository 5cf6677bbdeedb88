"""The host of the container-image functions that are deployed to local AWS.

MiniStack needs Docker for such a function, unless the function's environment names a URL for its invocations.
This host is that URL. It answers a batch of the stream at once and then delivers it by AWS's rules. It runs
every other invocation and answers it. See docs/decisions/0003-local-aws.md.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from cxr.local_aws.execution_environment import Function
from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.local_aws.processes import StoppingError
from cxr.local_aws.stream_mapping import FunctionError, Lane, MappingSettings, Record, StreamMapping

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_s3 import S3Client

PROXY_URL = "MINISTACK_LAMBDA_PROXY_URL"  # the variable that names the URL to MiniStack
PLUG_IN_SECONDS = 1.0  # between two looks for functions that a `cdk deploy` has added
MAXIMUM_LANES_AT_WORK = 64  # the others wait

logger = logging.getLogger(__name__)


class FunctionHost:
    """Runs every container-image function of local AWS from its source folder, until `close`."""

    def __init__(
        self,
        lambda_client: LambdaClient,
        s3: S3Client,
        make_function: Callable[[Mapping[str, Any]], Function],
    ) -> None:
        """`make_function` gets the answer of GetFunctionConfiguration."""
        self._lambda, self._s3, self._make_function = lambda_client, s3, make_function
        self._functions: dict[str, Function] = {}
        self._mappings: dict[str, StreamMapping] = {}
        self._at_work: set[Lane] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._executor = ThreadPoolExecutor(MAXIMUM_LANES_AT_WORK, "lane")
        self._server = LoopbackServer(self._respond)
        threading.Thread(target=self._keep_plugged_in, daemon=True).start()

    @property
    def delivering(self) -> bool:
        """Whether records of a stream are being delivered, or wait for a retry."""
        return bool(self._at_work)

    def plug_in(self) -> None:
        """Tell MiniStack to post the invocations of container-image functions here. Safe to repeat."""
        url = f"http://{self._server.address}/"
        for page in self._lambda.get_paginator("list_functions").paginate():
            for function in page["Functions"]:
                variables = function.get("Environment", {}).get("Variables", {})
                if function.get("PackageType") == "Image" and variables.get(PROXY_URL) != url:
                    self._lambda.update_function_configuration(
                        FunctionName=function["FunctionName"],
                        Environment={"Variables": {**variables, PROXY_URL: url}},
                    )

    def close(self) -> None:
        """Take no more invocations. Those at work end when their processes are stopped."""
        self._closing.set()
        self._server.close()
        for function in self._functions.values():
            function.retire()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _keep_plugged_in(self) -> None:
        while not self._closing.wait(PLUG_IN_SECONDS):
            # A function may disappear while its stack is being deployed. The next round looks again.
            with suppress(BotoCoreError, ClientError):
                self.plug_in()

    def _respond(self, _path: str, headers: Message, body: bytes) -> Reply:
        name, event = str(headers["X-Amzn-Lambda-Function-Name"]), json.loads(body)
        try:
            if mapping := self._mapping_of(name, event):
                self._deliver(mapping, event["Records"])
                return Reply(HTTPStatus.OK)
            answer = self._function(name).invoke(event, str(headers["X-Amzn-Lambda-Request-Id"]))
            return Reply(HTTPStatus.OK, json.dumps(answer).encode())
        except FunctionError as error:
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, json.dumps(error.payload).encode())
        except StoppingError:
            return Reply(HTTPStatus.SERVICE_UNAVAILABLE)

    def _function(self, name: str) -> Function:
        """The function as deployed now. A new revision gets new execution environments, as on Lambda."""
        configuration = self._lambda.get_function_configuration(FunctionName=name)
        with self._lock:
            function = self._functions.get(name)
            if function and function.spec.configuration["RevisionId"] == configuration["RevisionId"]:
                return function
            if function:
                function.retire()
            configuration.get("Environment", {}).get("Variables", {}).pop(PROXY_URL, None)
            function = self._functions[name] = self._make_function(configuration)
            return function

    def _mapping_of(self, function: str, event: Any) -> StreamMapping | None:
        """The event source mapping of a Kinesis event, with its present settings; None for another event."""
        records = event.get("Records") if isinstance(event, dict) else None
        if not isinstance(records, list) or not records or not isinstance(records[0], dict):
            return None
        if records[0].get("eventSource") != "aws:kinesis":
            return None
        mappings = self._lambda.list_event_source_mappings(
            FunctionName=function, EventSourceArn=records[0]["eventSourceARN"]
        )["EventSourceMappings"]
        if not mappings:
            return None
        settings = MappingSettings.from_api(mappings[0])
        with self._lock:
            mapping = self._mappings.get(settings.uuid)
            if not mapping:
                mapping = self._mappings[settings.uuid] = StreamMapping(
                    settings,
                    invoke=lambda event, request_id: self._function(function).invoke(event, request_id),
                    put_failure=lambda key, document: self._s3.put_object(
                        Bucket=str(settings.failure_bucket), Key=key, Body=document.encode()
                    ),
                    sleep=self._closing.wait,
                )
            mapping.settings = settings
            return mapping

    def _deliver(self, mapping: StreamMapping, records: list[Record]) -> None:
        with self._lock:
            for lane in mapping.add(records) - self._at_work:
                self._at_work.add(lane)
                self._executor.submit(self._work, lane).add_done_callback(_log_error)

    def _work(self, lane: Lane) -> None:
        while not self._closing.is_set():
            with self._lock:
                if lane.idle:
                    self._at_work.discard(lane)
                    return
            lane.deliver_next()


def _log_error(work: Future[None]) -> None:
    error = None if work.cancelled() else work.exception()
    if error and not isinstance(error, StoppingError):
        logger.error("a lane stopped", exc_info=error)
