"""Local AWS: MiniStack, the real CDK and the deployed functions."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config

from cxr import PROJECT
from cxr.classifier_log import LOCAL_LOGS
from cxr.errors import Failed
from cxr.local_aws.containers import Containers
from cxr.local_aws.execution_environment import Function, FunctionSpec
from cxr.local_aws.function_host import FunctionHost
from cxr.local_aws.processes import Processes, signals_held
from stacks.config import DEFAULT_NAME
from stacks.settings_file import FILE_VARIABLE

ACCOUNT, REGION = "000000000000", "us-east-1"  # MiniStack's own
START_SECONDS = 60
LOG_TAIL_LINES = 15
LOG = "cxr.log"  # of this process


class LocalAwsError(Failed):
    """Local AWS, or a deployment to it, failed. The message may end with the last lines of a log."""


class LocalAws:
    """`with LocalAws() as aws: aws.deploy()` is a deployed stack. After the block nothing of it is left.

    Within the block, `os.environ` points every AWS SDK and tool to local AWS, without the AWS settings that
    were there. Logs are in build/local/, and stay there if the block ends with an error.
    """

    def __init__(self, project: Path = PROJECT, image: str | None = None) -> None:
        """With an `image`, the classifier runs in Docker containers of it, by default in processes."""
        self._project = project
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.logs = project / "build" / "local" / name
        self._folder = Path(gettempdir()) / f"cxr-local-{name}"
        self._log_handler = logging.FileHandler(self.logs / LOG, delay=True)
        self._processes = Processes()
        self._containers = Containers(image, owner=name) if image else None
        self._host: FunctionHost | None = None
        self._bootstrapped = False
        self._outer_environment = dict(os.environ)
        self.environment: dict[str, str] = {}  # points a shell to this local AWS

    def __enter__(self) -> Self:
        """Start MiniStack and the function host. Raises LocalAwsError."""
        try:
            self.logs.parent.mkdir(parents=True, exist_ok=True)
            self.logs.parent.chmod(0o700)
            self.logs.mkdir(mode=0o700)
            (self.logs / LOG).touch(mode=0o600)
            logging.getLogger("cxr").addHandler(self._log_handler)
            self._folder.mkdir(mode=0o700)
            self._start()
        except BaseException as error:
            self._stop(keep_logs=isinstance(error, Exception))
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop(keep_logs=isinstance(error, Exception))  # Ctrl-C and SIGTERM are no Exception

    def client(self, service: str) -> Any:
        """A boto3 client of local AWS. It waits as long as a function may run, and never retries."""
        config = Config(read_timeout=900, retries={"total_max_attempts": 1}, max_pool_connections=64)
        return boto3.Session().client(service, config=config)  # type: ignore[call-overload]

    def bootstrap(self) -> None:
        """`cdk bootstrap`. Raises LocalAwsError."""
        # In another folder than cdk.json: the CDK would run the app first, for nothing.
        self._cdk("bootstrap", f"aws://{ACCOUNT}/{REGION}", cwd=self._folder)
        self._bootstrapped = True

    def deploy(self, *context: str) -> dict[str, str]:
        """`cdk deploy` with settings like "shards=2". Returns the outputs. Raises LocalAwsError."""
        if not self._bootstrapped:
            self.bootstrap()
        settings = [argument for setting in context for argument in ("-c", setting)]
        output = str(self._folder / "cdk.out")
        # A change set takes a second longer, and nobody would look at it.
        options = ("--require-approval", "never", "--method=direct", "--output", output)
        self._cdk("deploy", *options, *settings, cwd=self._project)
        if self._host:
            self._host.plug_in()
        stack = boto3.Session().client("cloudformation").describe_stacks(StackName=DEFAULT_NAME)["Stacks"][0]
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    @property
    def running(self) -> bool:
        """Whether MiniStack is running."""
        return self._ministack.poll() is None

    @property
    def delivering(self) -> bool:
        """Whether records of the stream are with the classifier, or wait for a retry."""
        return self._host is not None and self._host.delivering

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            FILE_VARIABLE: os.devnull,  # the settings of a real account name what is not there
            "CDK_VALIDATION": "false",  # skips the CDK's own rules; deployments to AWS check them
            "CDK_DOCKER": "true",  # the program `true`: it takes any arguments and succeeds
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",  # Node's major version
            LOCAL_LOGS: str(self.logs),
        }
        for name in list(os.environ):
            if name.startswith("AWS_"):
                del os.environ[name]
        os.environ.update(self.environment)
        self._start_ministack(port)
        self._host = FunctionHost(
            self.client("lambda"), self.client("kinesis"), self.client("s3"), self._make_function
        )

    def _make_function(self, configuration: Mapping[str, Any]) -> Function:
        spec = FunctionSpec(
            configuration,
            task_root=self._project / "containers" / "classifier",
            environment=self.environment | self._process_variables(configuration),
            log=self.logs / "classifier.log",
            containers=self._containers,
        )
        return Function(spec, self._processes, concurrency=os.cpu_count() or 1)

    def _process_variables(self, configuration: Mapping[str, Any]) -> dict[str, str]:
        """For a function in a process: its temporary folder, and the model that it was deployed with.

        The CDK keeps what an image is built from in its output folder, and tags the image with the hash.
        """
        if self._containers:
            return {}
        variables = {"TMPDIR": str(self._folder)}
        code = self.client("lambda").get_function(FunctionName=configuration["FunctionName"])["Code"]
        asset = f"asset.{code.get('ImageUri', '').rpartition(':')[2]}"
        for output in (self._folder / "cdk.out", self._project / "cdk.out"):
            bundle = output / asset / "containers" / "classifier" / "model"
            if bundle.is_dir():
                return {**variables, "MODEL_DIR": str(bundle)}
        return variables

    def _start_ministack(self, port: int) -> None:
        log = self.logs / "ministack.log"
        settings = {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "IOT_MTLS_ENABLED": "0",
            "LOG_LEVEL": "WARNING",  # at INFO it names S3 keys
            "STATE_DIR": str(self._folder),
            "TMPDIR": str(self._folder),
        }
        command = [sys.executable, "-m", "cxr.local_aws.guarded_ministack", str(os.getpid())]
        environment = {**os.environ, **settings}
        self._ministack = self._processes.start(command, cwd=self._folder, environment=environment, log=log)
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(port):
            if not self.running or time.monotonic() > deadline:
                raise LocalAwsError(f"MiniStack did not start:\n{_tail(log)}")
            time.sleep(0.05)

    def _cdk(self, *arguments: str, cwd: Path) -> None:
        cdk, log = self._project / "node_modules" / ".bin" / "cdk", self.logs / f"cdk-{arguments[0]}.log"
        if not shutil.which("node"):
            raise LocalAwsError("Node.js is missing: install Node.js 20 or later, the CDK needs it.")
        if not cdk.exists():
            raise LocalAwsError("The CDK CLI is not installed: run `make install`.")
        # The CDK app needs this interpreter's libraries.
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "TMPDIR": str(self._folder),
        }
        process = self._processes.start([str(cdk), *arguments], cwd=cwd, environment=environment, log=log)
        try:
            code = process.wait()
        finally:
            self._processes.stop(process)
        if code:
            raise LocalAwsError(f"`cdk {arguments[0]}` failed. The end of {log}:\n{_tail(log)}")

    def _stop(self, keep_logs: bool) -> None:
        with signals_held():
            if self._host:
                self._host.close()
            self._processes.stop_all()
            if self._containers:
                self._containers.remove()
            logging.getLogger("cxr").removeHandler(self._log_handler)
            self._log_handler.close()
            os.environ.clear()
            os.environ.update(self._outer_environment)
            shutil.rmtree(self._folder, ignore_errors=True)
            if not keep_logs:
                shutil.rmtree(self.logs, ignore_errors=True)
                with suppress(OSError):  # the logs of another local AWS are there
                    self.logs.parent.rmdir()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/_ministack/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
