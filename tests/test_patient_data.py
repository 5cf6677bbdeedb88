"""What names or shows a patient stays in the table, the buckets and the stream: a faulty run, searched.

Both functions run as on Lambda, by the real runtime client, against local AWS behind a network that spoils
what it is told to. Every key, every header and the first pixels hold MARKER. It must be nowhere in what they
write for people to watch by: the log, the metrics in it, error replies, traces, events.

The answer to a direct invocation names its keys, by contract: it goes to who gave them, and into no log.
"""

import base64
import http.client
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.uid import DeflatedExplicitVRLittleEndian
from support import BUCKET, PREFIX, ROOT, STREAM, TABLE, recounted, table_items
from test_dicom import RAMP, dicom

from cxr.local_aws.execution_environment import ExecutionEnvironment, FunctionSpec
from cxr.local_aws.local_aws import LocalAws
from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.local_aws.processes import Processes
from cxr.local_aws.stream_mapping import FunctionError
from reliability.table import create_table

pytestmark = pytest.mark.xdist_group("patient_data")  # they share a faulty run

MARKER = "Qmarkerq"
FOLDER = f"{PREFIX}{MARKER}/"  # a prefix may name a patient, too
# As text, in hex and as numbers; `leaks` undoes base64.
FORMS = [MARKER, MARKER.encode().hex(), *(sep.join(map(str, MARKER.encode())) for sep in (", ", " "))]
# As deployed; as Lambda has it by default; and more than is ever set.
LOGGING: list[dict[str, str]] = [
    {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"},
    {},
    {"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"},
]


def leaks(text: str) -> list[str]:
    """Each place where the marker is, in a form or another, with what is around it."""
    tokens = [token for token in re.findall(r"[\w+/-]{16,}", text, re.ASCII) if len(token) % 4 != 1]
    plain = " ".join(base64.b64decode(token + "===", altchars=b"-_").decode("latin-1") for token in tokens)
    return [
        searched[max(0, found.start() - 80) : found.end() + 80]
        for searched in (text, plain)
        for form in FORMS
        for found in re.finditer(re.escape(form), searched, re.IGNORECASE)
    ]


class Network:
    """What the functions take for AWS: local AWS, but for what a key or a run's name asks for."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.removeprefix("http://")
        self.announced: list[str] = []  # what PutEvents was asked to send
        self.partition_keys: list[str] = []
        self._closing = threading.Event()
        self._server = LoopbackServer(self._respond)
        self.url = f"http://{self._server.address}"

    def close(self) -> None:
        self._closing.set()
        self._server.close()

    def _respond(self, path: str, headers: Message, body: bytes) -> Reply:
        operation, asked = (
            headers.get("X-Amz-Target", "").rpartition(".")[2],
            f"{unquote(path)} {body.decode()}",
        )
        if "stalled" in path:
            self._closing.wait()
        if "503" in path or self._closing.is_set():
            return _s3_error(503, "SlowDown", asked)
        if "403" in path and "list-type" not in path:
            return _s3_error(403, "AccessDenied", asked)
        if operation == "BatchGetItem" and "throttled" in asked:
            return _dynamodb_error("ProvisionedThroughputExceededException", asked)
        if operation == "TransactWriteItems" and "conflict" in asked and "scored_at" in asked:
            reasons = [{"Code": "ValidationError", "Message": asked}]
            return _dynamodb_error("TransactionCanceledException", asked, CancellationReasons=reasons)
        if operation == "PutEvents":
            self.announced.append(body.decode())
        if operation == "PutRecords":
            self.partition_keys += [record["PartitionKey"] for record in json.loads(body)["Records"]]
        connection = http.client.HTTPConnection(self._endpoint, timeout=60)
        given = {name: value for name, value in headers.items() if name.lower() != "host"}
        connection.request("POST" if body else "GET", path, body or None, given)
        answer = connection.getresponse()
        passed = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
        if "headers" in path:
            passed["X-Odd"] = "\r\nno header at all"
        return Reply(answer.status, answer.read(), passed)


_HOP = {"content-length", "transfer-encoding", "connection", "date", "server"}


def _s3_error(status: int, code: str, asked: str) -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{asked}</Message><Key>{asked}</Key></Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml"})


def _dynamodb_error(code: str, asked: str, **more: Any) -> Reply:
    document = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": asked, **more}
    return Reply(400, json.dumps(document).encode(), {"Content-Type": "application/x-amz-json-1.0"})


class Overheard(ExecutionEnvironment):
    """A function of which all is kept that it tells Lambda of an error: a body, and a header for X-Ray."""

    def __init__(self, function: FunctionSpec, processes: Processes) -> None:
        self.errors: list[str] = []
        super().__init__(function, processes)

    def _respond(self, path: str, headers: Message, body: bytes) -> Reply:
        if path.endswith("/error"):
            self.errors.append(f"{headers} {body.decode()}")
        return super()._respond(path, headers, body)


@dataclass
class Heard:
    """What came out of a function, besides its answers to who invoked it."""

    log: str = ""
    errors: list[str] = field(default_factory=list)  # of each invocation that failed
    answers: list[Any] = field(default_factory=list)  # of each that did not


@dataclass
class Aws:
    """Local AWS with the stack's parts, the network before it, and the functions on this side of that."""

    network: Network
    environment: dict[str, str]
    folder: Path
    processes: Processes = field(default_factory=Processes)

    def classifier(self, logging: dict[str, str], timeout: float = 120) -> FunctionSpec:
        return self._spec("classifier.handler.handle", ROOT / "containers" / "classifier", logging, timeout)

    def job_creator(self, logging: dict[str, str]) -> FunctionSpec:
        return self._spec("job_creator.handler.handle", ROOT / "lambdas", logging, 900)

    def _spec(self, handler: str, code: Path, logging: dict[str, str], timeout: float) -> FunctionSpec:
        card = json.loads((ROOT / "containers/classifier/model/model.json").read_text())
        variables = {
            "BUCKET_NAME": BUCKET,
            "TABLE_NAME": TABLE,
            "STREAM_NAME": STREAM,
            "KEY_PREFIX": PREFIX,
            "IMAGES_PER_JOB": "2",
            "RUN_FIELDS": json.dumps(
                {"model": f"{card['name']}:{card['version']}", "model_sha256": card["sha256"]}
            ),
        }
        configuration = {
            "FunctionName": handler.partition(".")[0],
            "FunctionArn": "arn:function",
            "Timeout": timeout,
            "MemorySize": 1769,
            "ImageConfigResponse": {"ImageConfig": {"Command": [handler]}},
            "Environment": {"Variables": variables},
            "LoggingConfig": logging,
        }
        reach = {**self.environment, "AWS_ENDPOINT_URL": self.network.url, "PYTHONDONTWRITEBYTECODE": "1"}
        return FunctionSpec(configuration, code, reach, self.folder / "unused")

    def hear(self, spec: FunctionSpec, *events: Any) -> Heard:
        """Invokes the function with one event after another, in an execution environment of its own."""
        number = len(list(self.folder.iterdir()))
        log = self.folder / f"{number}-{time.monotonic_ns()}.log"
        heard = Heard()
        function = Overheard(replace(spec, log=log), self.processes)
        for event in events:
            try:
                heard.answers.append(function.invoke(event, "request-1"))
            except FunctionError as error:
                heard.errors.append(json.dumps(error.payload))
        function.stop()
        heard.errors += function.errors
        heard.log = log.read_text(errors="replace")
        return heard


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with LocalAws() as local:
        network = Network(local.environment["AWS_ENDPOINT_URL"])
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        boto3.client("kinesis").create_stream(StreamName=STREAM, ShardCount=1)
        create_table(boto3.client("dynamodb"), TABLE)
        for name, body in FILES.items():
            boto3.client("s3").put_object(Bucket=BUCKET, Key=FOLDER + name, Body=body)
        here = Aws(network, local.environment, tmp_path_factory.mktemp("logs"))
        yield here
        here.processes.stop_all()
        network.close()


def _files() -> Iterator[tuple[str, bytes]]:
    pixels = RAMP.astype(np.uint8).copy()
    pixels[0, : len(MARKER)] = list(MARKER.encode())
    info = PngInfo()
    info.add_text(MARKER, MARKER)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info)
    png = file.getvalue()
    for name in ("scored.png", "403.png", "503.png", "headers", "stalled"):
        yield name, png
    yield "empty.png", b""
    yield "text.png", MARKER.encode() * 20
    yield "cut.png", png[: len(png) // 2]
    header: dict[str, Any] = {"PatientName": f"{MARKER}^{MARKER}", "PatientID": MARKER}
    plain = dicom(pixels, StudyDate="20200102", WindowCenter="12345678", WindowWidth="87654321", **header)
    yield "scored.dcm", plain
    for value in (b"20200102", b"12345678", b"MONOCHROME2 "):
        yield f"bad-{value.decode().strip()}.dcm", plain.replace(value, MARKER.encode().ljust(len(value)))
    yield "cut.dcm", plain[:-1000]
    yield "cut-early.dcm", plain[:400]
    yield "deflated.dcm", dicom(pixels, syntax=DeflatedExplicitVRLittleEndian, **header)
    yield "index.csv", f"Key\n{FOLDER}scored.png\nelsewhere/{MARKER}.png\n".encode()
    yield "broken.csv", f"Key\n{FOLDER}scored.png\n".encode() + b'"\xff' + MARKER.encode()
    yield "no-column.csv", f"{MARKER}\n{FOLDER}scored.png\n".encode()


FILES = dict(_files())
INDEXES = [name for name in FILES if name.endswith(".csv")]
IMAGES = [FOLDER + name for name in FILES if "." in name and not name.endswith(".csv")] + [
    f"{FOLDER}missing.png"
]


def batch(*jobs: Any) -> dict[str, Any]:
    """A Kinesis event; bytes go in as they are."""
    datas = [job if isinstance(job, bytes) else json.dumps(job).encode() for job in jobs]
    return {
        "Records": [
            {"kinesis": {"sequenceNumber": str(number), "data": base64.b64encode(data).decode()}}
            for number, data in enumerate(datas)
        ]
    }


def job(run_id: str, *keys: str) -> dict[str, Any]:
    """A job of a run that the job creator has begun."""
    run_uid = table_items()["RUN", run_id]["uid"]
    return {"RunId": run_id, "RunUid": run_uid, "Bucket": BUCKET, "Keys": list(keys)}


@pytest.fixture(scope="module")
def heard(aws: Aws) -> dict[str, Heard]:
    """A faulty run at each setting of the log, all at once, for they mostly wait."""
    numbers = range(len(LOGGING))
    with ThreadPoolExecutor(len(LOGGING) * 4) as pool:
        found = {
            f"job creator {n}": aws.hear(aws.job_creator(LOGGING[n]), *runs_asked_for(n)) for n in numbers
        }
        hearing = {
            f"classifier {n}, {name}": pool.submit(aws.hear, aws.classifier(LOGGING[n], timeout), *events)
            for n in numbers
            for name, (timeout, events) in deliveries(n).items()
        }
        return found | {name: future.result() for name, future in hearing.items()}


def runs_asked_for(number: int) -> list[Any]:
    """Three runs that start, and what is refused, in each way that a key or a name may come into it."""

    def asked(run: str, **more: Any) -> dict[str, Any]:
        return {"RunId": f"{run}-{number}", **more}

    return [
        asked("run", Keys=IMAGES),
        asked("run", Prefix=FOLDER),
        asked("run", Keys=[f"{FOLDER}scored.png"]),
        asked("prefix", Prefix=f"{FOLDER}scored", JobCount=1),
        asked("prefix", Prefix=FOLDER),
        asked("whole", Keys=[f"{FOLDER}scored.png"]),
        asked("conflict", Keys=[f"{FOLDER}scored.png"]),
        asked("conflict", IndexKey=f"{FOLDER}scored.csv"),
        *(asked("bad", IndexKey=FOLDER + name) for name in (*INDEXES, "missing.csv", "403.csv")),
        *(asked("bad", Prefix=prefix) for prefix in (f"{FOLDER}nothing/", f"elsewhere/{MARKER}/", 403)),
        *(asked("bad", Keys=keys) for keys in ([f"{PREFIX}a", MARKER], f"{FOLDER}a", [f"{FOLDER}\ud800"])),
        asked("bad", **{f"{FOLDER}scored.png": 1}),
        asked("bad", JobCount=f"{FOLDER}scored.png"),
        {"RunId": f"{MARKER}/{MARKER}", "Keys": IMAGES},
        [f"{FOLDER}scored.png"],
    ]


def deliveries(number: int) -> dict[str, tuple[float, list[Any]]]:
    """What the classifier is given, as name -> (its timeout in seconds, events)."""
    run, key = f"run-{number}", f"{FOLDER}scored.png"
    no_jobs = [
        MARKER.encode(),
        f'{{"RunId": "{MARKER}'.encode(),
        [MARKER],
        {"RunId": f"{MARKER}/", "Bucket": BUCKET, "Keys": [key]},
        {"RunId": run, "Bucket": BUCKET, "Keys": [MARKER, 1]},
        {"RunId": run, "Bucket": {MARKER: 1}, "Keys": [key]},
        job(run, f"{FOLDER}\ud800"),
        b"[" * 100_000 + MARKER.encode(),
    ]
    may_pass = [
        job(f"whole-{number}", key),  # its only one, and so the run is complete
        job(f"conflict-{number}", key),
        {**job(f"prefix-{number}", f"{FOLDER}throttled.png"), "Continued": True},
        {**job(run, key), "Bucket": f"no {MARKER}"},  # which botocore refuses, and quotes
        job(run, FOLDER + "long" * 300),
    ]
    return {
        "images": (120, [batch(*(job(run, image) for image in IMAGES), *no_jobs)]),
        "passing": (120, [batch(*may_pass)]),
        "crashes": (
            120,
            [
                batch(
                    job(run, f"{FOLDER}headers")
                ),  # urllib3 warns of an answer's headers, and names the URL
                {"Records": [{key: key}]},
                {key: key},
                {"Jobs": [{"RunId": f"{MARKER}/", "Key": key}]},
                {"Jobs": [{"RunId": f"direct-{number}", "Key": f"{FOLDER}403.png"}]},
            ],
        ),
        # Ten seconds before the end the classifier begins nothing; five are left to begin in.
        "timeout": (15, [batch(job(run, f"{FOLDER}stalled"))]),
    }


@pytest.mark.parametrize("logging", range(len(LOGGING)))
def test_the_run_was_as_faulty_as_meant(aws: Aws, heard: dict[str, Heard], logging: int) -> None:
    counted = recounted(table_items(), f"run-{logging}")
    assert {name: n for name, n in counted.items() if not name.startswith("WARNING#")} == {
        "SCORED": 3,
        "FAILED#IMAGE_MISSING": 1,
        "FAILED#IMAGE_EMPTY": 1,
        "FAILED#NOT_AN_IMAGE": 1,
        "FAILED#IMAGE_CORRUPT": 3,
        "FAILED#DICOM_NO_PIXELS": 1,
        "FAILED#DICOM_PHOTOMETRIC": 1,
        "FAILED#DICOM_TRANSFER_SYNTAX": 1,
    }
    images, passing, crashes, timeout = (
        heard[f"classifier {logging}, {name}"] for name in ("images", "passing", "crashes", "timeout")
    )
    assert {"GetObject: SlowDown", "GetObject: AccessDenied"} < set(_line(images)["failures"].values())
    assert list(_line(passing)["failures"].values()) == [
        "TransactWriteItems: TransactionCanceledException",
        "BatchGetItem: ProvisionedThroughputExceededException",
        "ParamValidationError",
        "TransactWriteItems: ValidationException",
    ]
    assert (crashes.answers, timeout.answers) == ([], [])
    assert "Sandbox.Timedout" in timeout.errors[0]
    assert f"whole-{logging}" in repr(aws.network.announced)
    assert len(heard[f"job creator {logging}"].answers) == 4


def _line(one: Heard) -> dict[str, Any]:
    """The one line that a function printed."""
    return dict(json.loads(one.log))


def test_nothing_that_is_watched_names_or_shows_a_patient(aws: Aws, heard: dict[str, Heard]) -> None:
    found = {name: leaks("\n".join([one.log, *one.errors, repr(one.answers)])) for name, one in heard.items()}
    assert found == {name: [] for name in heard}
    assert leaks(repr(aws.network.announced + aws.network.partition_keys)) == []


@pytest.mark.parametrize(
    "leak",
    [
        "print(event)",  # whose records are base64
        "print(key)",
        "print(key.encode().hex(), file=sys.stderr)",
        "print(list(key.encode()))",
        "raise ValueError(key)",
        "logging.disable(logging.NOTSET)",  # and urllib3 warns of an odd answer, with its URL
    ],
)
@pytest.mark.usefixtures("heard")
def test_a_handler_that_tells_is_found(aws: Aws, tmp_path: Path, leak: str) -> None:
    (tmp_path / "leaky.py").write_text(
        "import base64, json, logging, sys\n"
        "from classifier.handler import handle as right\n"
        "def handle(event, context):\n"
        "    key = json.loads(base64.b64decode(event['Records'][0]['kinesis']['data']))['Keys'][0]\n"
        f"    {leak}\n"
        "    return right(event, context)\n"
    )
    spec = aws.classifier(LOGGING[0])
    command = {"ImageConfigResponse": {"ImageConfig": {"Command": ["leaky.handle"]}}}
    leaky = replace(
        spec,
        configuration={**spec.configuration, **command},
        task_root=tmp_path,
        environment={**spec.environment, "PYTHONPATH": str(spec.task_root)},
    )
    one = aws.hear(leaky, batch(job("run-0", f"{FOLDER}headers")))
    assert leaks("\n".join([one.log, *one.errors]))


def test_a_direct_invocation_is_answered_with_its_key_and_logs_none(aws: Aws) -> None:
    one = aws.hear(aws.classifier(LOGGING[0]), {"Jobs": [{"RunId": "direct", "Key": f"{FOLDER}scored.png"}]})
    assert one.answers[0]["Predictions"][0]["Key"] == f"{FOLDER}scored.png"
    assert leaks(one.log) == []
    assert _line(one)["ImagesScored"] == 1
