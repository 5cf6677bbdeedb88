"""The host of the container-image functions that are deployed to local AWS.

MiniStack needs Docker for such a function, unless the function's environment names a URL for its invocations.
This host is that URL. It also reads the streams of the functions, and delivers them by Lambda's rules. See
docs/decisions/0003-local-aws.md.
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
from cxr.local_aws.stream_mapping import (
    FunctionError,
    Lane,
    MappingSettings,
    Record,
    StreamMapping,
    ThrottledError,
)
from cxr.local_aws.stream_reader import StreamReader

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_lambda.type_defs import EventSourceMappingConfigurationTypeDef
    from mypy_boto3_s3 import S3Client

PROXY_URL = "MINISTACK_LAMBDA_PROXY_URL"  # the variable that names the URL to MiniStack
LOOK_SECONDS = (
    1.0  # between two looks for new functions, mappings and records; Lambda's rate (DG with-kinesis)
)
MAXIMUM_LANES_AT_WORK = 64  # the others wait

logger = logging.getLogger(__name__)


class FunctionHost:
    """Runs every container-image function of local AWS from its source folder, until `close`."""

    def __init__(
        self,
        lambda_client: LambdaClient,
        kinesis: KinesisClient,
        s3: S3Client,
        make_function: Callable[[Mapping[str, Any]], Function],
    ) -> None:
        """`make_function` gets the answer of GetFunctionConfiguration."""
        self._lambda, self._kinesis, self._s3 = lambda_client, kinesis, s3
        self._make_function = make_function
        self._names: set[str] = set()  # of the container-image functions
        self._functions: dict[str, Function] = {}
        self._mappings: dict[str, tuple[StreamMapping, StreamReader]] = {}  # by UUID
        self._at_work: set[Lane] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._executor = ThreadPoolExecutor(MAXIMUM_LANES_AT_WORK, "lane")
        self._server = LoopbackServer(self._respond)
        threading.Thread(target=self._keep_looking, daemon=True).start()

    @property
    def delivering(self) -> bool:
        """Whether records of a stream are being delivered, or wait for a retry."""
        return bool(self._at_work)

    def plug_in(self) -> None:
        """Tell MiniStack to post the invocations of container-image functions here. Safe to repeat."""
        url, names = f"http://{self._server.address}/", set()
        for page in self._lambda.get_paginator("list_functions").paginate():
            for function in page["Functions"]:
                if function.get("PackageType") != "Image":
                    continue
                names.add(function["FunctionName"])
                variables = function.get("Environment", {}).get("Variables", {})
                if variables.get(PROXY_URL) != url:
                    self._lambda.update_function_configuration(
                        FunctionName=function["FunctionName"],
                        Environment={"Variables": {**variables, PROXY_URL: url}},
                    )
        with self._lock:
            self._names = names
            for name in self._functions.keys() - names:  # they are deleted
                self._functions.pop(name).retire()

    def _read_streams(self) -> bool:
        """Read the new records of all streams that have an enabled mapping, and begin to deliver them.

        Returns whether there were any.
        """
        pages = self._lambda.get_paginator("list_event_source_mappings").paginate()
        found = [mapping for page in pages for mapping in page["EventSourceMappings"]]
        with self._lock:
            for uuid in self._mappings.keys() - {mapping["UUID"] for mapping in found}:
                del self._mappings[uuid]  # a deleted mapping delivers nothing more
        any_read = False
        for each in found:
            name = each["FunctionArn"].rpartition(":")[2]
            if each["State"] == "Enabled" and name in self._names and ":kinesis:" in each["EventSourceArn"]:
                with suppress(BotoCoreError, ClientError):  # its stream is deleted
                    any_read = self._read_stream(*self._mapping(each)) or any_read
        return any_read

    def close(self) -> None:
        """Take no more invocations. Those at work end when their processes are stopped."""
        self._closing.set()
        self._server.close()
        for function in self._functions.values():
            function.retire()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _keep_looking(self) -> None:
        any_read = False
        while not self._closing.wait(0 if any_read else LOOK_SECONDS):
            any_read = False
            # A function may disappear while its stack is being deployed. The next round looks again.
            with suppress(BotoCoreError, ClientError):
                self.plug_in()
                any_read = self._read_streams()

    def _respond(self, _path: str, headers: Message, body: bytes) -> Reply:
        name, request_id = str(headers["X-Amzn-Lambda-Function-Name"]), headers["X-Amzn-Lambda-Request-Id"]
        try:
            answer = self._function(name).invoke(json.loads(body), str(request_id))
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

    def _mapping(self, found: EventSourceMappingConfigurationTypeDef) -> tuple[StreamMapping, StreamReader]:
        """A mapping of ListEventSourceMappings with its present settings, and the reader of its stream."""
        settings = MappingSettings.from_api(found)
        if settings.uuid not in self._mappings:
            function = settings.function_arn.rpartition(":")[2]
            mapping = StreamMapping(
                settings,
                invoke=lambda event, request_id: self._invoke(function, event, request_id),
                put_failure=lambda key, document: self._put_failure(mapping, key, document),
                sleep=self._closing.wait,
            )
            reader = StreamReader(
                self._kinesis, settings.stream_arn, lambda shard: self._is_delivering(mapping, shard)
            )
            with self._lock:
                self._mappings[settings.uuid] = mapping, reader
        mapping, reader = self._mappings[settings.uuid]
        mapping.settings = settings
        return mapping, reader

    def _read_stream(self, mapping: StreamMapping, reader: StreamReader) -> bool:
        any_read = False
        for records in reader.read():
            now = self._lambda.get_event_source_mapping(UUID=mapping.settings.uuid)
            if now["State"] != "Enabled":  # the records may have come after it was disabled
                break
            self._deliver(mapping, records)
            any_read = True
        return any_read

    def _invoke(self, function: str, event: dict[str, Any], request_id: str) -> object:
        try:
            return self._function(function).invoke(event, request_id)
        except (BotoCoreError, ClientError) as error:  # the function is deleted
            raise ThrottledError from error

    def _put_failure(self, mapping: StreamMapping, key: str, document: str) -> None:
        """Write a failure object. If that fails, its records are lost, as on AWS."""
        bucket = str(mapping.settings.failure_bucket)
        try:
            self._s3.put_object(Bucket=bucket, Key=key, Body=document.encode())
        except (BotoCoreError, ClientError) as error:
            logger.error("a failure object could not be written to %s: %s", bucket, type(error).__name__)

    def _is_delivering(self, mapping: StreamMapping, shard: str) -> bool:
        with self._lock:
            return not self._at_work.isdisjoint(mapping.lanes(shard))

    def _deliver(self, mapping: StreamMapping, records: list[Record]) -> None:
        with self._lock:
            for lane in mapping.add(records) - self._at_work:
                self._at_work.add(lane)
                self._executor.submit(self._work, lane).add_done_callback(_log_error)

    def _work(self, lane: Lane) -> None:
        while not self._closing.is_set():
            with self._lock:
                if lane.idle or lane.mapping.settings.uuid not in self._mappings:
                    self._at_work.discard(lane)
                    return
            lane.deliver_next()


def _log_error(work: Future[None]) -> None:
    error = None if work.cancelled() else work.exception()
    if error and not isinstance(error, StoppingError):
        logger.error("a lane stopped", exc_info=error)
