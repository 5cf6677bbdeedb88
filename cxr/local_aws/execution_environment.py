"""A Lambda function on this machine: child processes run the real runtime client against a small Runtime API.

Lambda developer guide, runtimes-api and lambda-runtime-environment.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cxr.local_aws.containers import Containers
from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.local_aws.processes import Processes
from cxr.local_aws.stream_mapping import FunctionError

INIT_SECONDS = 10  # that initialisation may take besides the function's timeout
DOCKERFILE_CMD = re.compile(r'^CMD \["(?P<handler>[^"]+)"\]', re.MULTILINE)


@dataclass(frozen=True)
class FunctionSpec:
    """A function as deployed, and where its code is on this machine."""

    configuration: Mapping[str, Any]  # the answer of GetFunctionConfiguration
    task_root: Path  # the folder that becomes the image's working directory
    environment: Mapping[str, str]  # how to reach AWS: endpoint, credentials, region
    log: Path
    containers: Containers | None = None  # where it runs; by default in processes of this Python

    @property
    def name(self) -> str:
        return str(self.configuration["FunctionName"])

    @property
    def timeout(self) -> float:
        return float(self.configuration["Timeout"])

    @property
    def handler(self) -> str:
        """`module.function`, from the deployed command or the Dockerfile's CMD. Raises FunctionError."""
        image = self.configuration.get("ImageConfigResponse", {}).get("ImageConfig", {})
        if image.get("Command"):
            return str(image["Command"][0])
        cmd = DOCKERFILE_CMD.search((self.task_root / "Dockerfile").read_text())
        if not cmd:
            message = 'the Dockerfile has no line like CMD ["module.function"]'
            raise FunctionError({"errorType": "Runtime.InvalidEntrypoint", "errorMessage": message})
        return cmd["handler"]

    def process_environment(self, runtime_api: str) -> dict[str, str]:
        """The function's variables, Lambda's own (DG configuration-envvars), and how to reach AWS."""
        logging = self.configuration.get("LoggingConfig", {})
        return {
            "LANG": "en_US.UTF-8",
            "TZ": "UTC",
            **self.configuration.get("Environment", {}).get("Variables", {}),
            **self.environment,
            "AWS_LAMBDA_RUNTIME_API": runtime_api,
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.configuration["MemorySize"]),
            "AWS_LAMBDA_LOG_GROUP_NAME": logging.get("LogGroup", f"/aws/lambda/{self.name}"),
            "AWS_LAMBDA_LOG_STREAM_NAME": "local",
            "AWS_LAMBDA_LOG_FORMAT": logging.get("LogFormat", "Text"),
            "AWS_LAMBDA_LOG_LEVEL": logging.get("ApplicationLogLevel", ""),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "LAMBDA_TASK_ROOT": "/var/task" if self.containers else str(self.task_root),
            "_HANDLER": self.handler,
        }


class ExecutionEnvironment:
    """One copy of a function: a process and its Runtime API. It ends with its process or at a timeout."""

    def __init__(self, function: FunctionSpec, processes: Processes) -> None:
        """Start the process. Raises StoppingError, and FunctionError if the function names no handler."""
        self._function, self._processes = function, processes
        self._next: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[bool, bytes]] = queue.SimpleQueue()  # (success, JSON)
        self._initialised = threading.Event()
        self._started = time.monotonic()
        self._init_seconds: float | None = None  # until the first invocation has reported it
        self.alive = True
        self._runtime_api = LoopbackServer(self._respond)
        variables = function.process_environment(self._runtime_api.address)
        if function.containers:
            command, inherited = function.containers.command(variables), dict(os.environ)  # DOCKER_HOST, ...
        else:
            command = [sys.executable, "-m", "awslambdaric", function.handler]
            inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        self._process = processes.start(
            command, cwd=function.task_root, environment=inherited | variables, log=function.log
        )
        threading.Thread(target=self._await_exit, daemon=True).start()

    def invoke(self, event: Mapping[str, Any], request_id: str) -> object:
        """Run the function once and return its answer.

        Raises FunctionError as Lambda reports it: the function's own error, Sandbox.Timedout at its timeout,
        Runtime.ExitError if its process died.
        """
        self._initialised.wait(INIT_SECONDS)
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + self._function.timeout) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": self._function.configuration["FunctionArn"],
        }
        began = time.monotonic()
        self._next.put(Reply(HTTPStatus.OK, json.dumps(event).encode(), headers))
        try:
            success, answer = self._outcomes.get(timeout=self._function.timeout)
        except queue.Empty:
            self.stop()
            message = f"{request_id} Task timed out after {self._function.timeout:.2f} seconds"
            error = {"errorType": "Sandbox.Timedout", "errorMessage": message}
            self._report("timeout", began, error)
            raise FunctionError(error) from None
        payload = json.loads(answer)
        if not success:
            if payload.get("errorType") == "Runtime.ExitError":
                self._report("error", began, payload)
            raise FunctionError(payload)
        self._report("success", began)
        return payload

    def _report(self, status: str, began: float, error: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write Lambda's own line on an invocation to the log (DG telemetry-schema-reference).

        It also says that the process was ended, which nothing in it can say.
        """
        time_of_day = datetime.now(UTC).isoformat(timespec="milliseconds")
        seconds = time.monotonic() - began
        metrics = {"durationMs": round(1000 * seconds, 2)}
        if self._init_seconds is not None:
            metrics["initDurationMs"] = round(1000 * self._init_seconds, 2)
            seconds += self._init_seconds
            self._init_seconds = None
        metrics["billedDurationMs"] = math.ceil(1000 * seconds)
        record = {"status": status, "metrics": metrics}
        line = {"time": time_of_day, "type": "platform.report", "record": record, **error}
        with self._function.log.open("a") as log:
            log.write(f"{json.dumps(line)}\n")

    def stop(self) -> None:
        """End the process and close its Runtime API."""
        self.alive = False
        self._processes.stop(self._process)
        self._next.put(Reply(HTTPStatus.GONE))  # lets a waiting request end
        self._runtime_api.close()

    def _respond(self, path: str, _headers: Message, body: bytes) -> Reply:
        if not self._initialised.is_set():
            self._init_seconds = time.monotonic() - self._started
            self._initialised.set()
        if path.endswith("/invocation/next"):
            return self._next.get()
        if path.endswith("/init/error"):
            self.alive = False  # the process ends by itself
        self._outcomes.put((path.endswith("/response"), body))
        return Reply(HTTPStatus.ACCEPTED)

    def _await_exit(self) -> None:
        code = self._process.wait()
        self.alive = False
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        error = {"errorType": "Runtime.ExitError", "errorMessage": f"Runtime exited with error: {how}"}
        self._outcomes.put((False, json.dumps(error).encode()))
        self._initialised.set()


class Function:
    """A deployed function, with as many execution environments as it needs, up to `concurrency`."""

    def __init__(self, spec: FunctionSpec, processes: Processes, concurrency: int) -> None:
        self.spec = spec
        self._processes = processes
        self._permits = threading.BoundedSemaphore(concurrency)
        self._idle: list[ExecutionEnvironment] = []
        self._retired = False

    def invoke(self, event: Mapping[str, Any], request_id: str) -> object:
        """Run the function in a free environment; wait for one if necessary. Raises as its `invoke` does."""
        with self._permits:
            environment = self._free_environment()
            try:
                return environment.invoke(event, request_id)
            finally:
                if environment.alive and not self._retired:
                    self._idle.append(environment)
                else:
                    environment.stop()

    def _free_environment(self) -> ExecutionEnvironment:
        while self._idle:
            environment = self._idle.pop()
            if environment.alive:
                return environment
            environment.stop()  # killed while it was idle
        return ExecutionEnvironment(self.spec, self._processes)

    def retire(self) -> None:
        """Stop the environments; one at work stops after its answer."""
        self._retired = True
        while self._idle:
            self._idle.pop().stop()
