"""Data that can identify a patient stays in the table, the buckets and the stream.

Both functions run with the real runtime client of Lambda, on local AWS behind a faulty network. Every key,
every header and the first pixels contain MARKER. The tests search for it in everything that operators see:
logs and their metrics, error replies, traces and events.

The answer to direct jobs names their keys, because the caller sent them. They are in no log.
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
from support import BUCKET, PREFIX, ROOT, STREAM, TABLE, kinesis_event, recounted, table_items
from test_dicom import RAMP, dicom

from cxr.local_aws.execution_environment import ExecutionEnvironment, FunctionSpec
from cxr.local_aws.local_aws import LocalAws
from cxr.local_aws.loopback import LoopbackServer, Reply
from cxr.local_aws.processes import Processes
from cxr.local_aws.stream_mapping import FunctionError
from reliability.dicom import JPEG_LOSSLESS, PIXELS, encapsulate, encode_file, without, x_ray_elements
from reliability.jpeg import encode_lossless
from reliability.table import create_table

pytestmark = pytest.mark.xdist_group("patient_data")  # the tests share the output of the functions

MARKER = "Qmarkerq"
FOLDER = f"{PREFIX}{MARKER}/"  # a prefix can identify a patient, too
# As text, in hex and as numbers. `find_leaks` also decodes base64.
FORMS = [MARKER, MARKER.encode().hex(), *(sep.join(map(str, MARKER.encode())) for sep in (", ", " "))]
# As deployed; Lambda's default; and the most detailed level.
LOGGING: list[dict[str, str]] = [
    {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"},
    {},
    {"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"},
]


def find_leaks(text: str) -> list[str]:
    """Every place where the marker occurs in any of its forms, with the text around it."""
    tokens = [token for token in re.findall(r"[\w+/-]{16,}", text, re.ASCII) if len(token) % 4 != 1]
    plain = " ".join(base64.b64decode(token + "===", altchars=b"-_").decode("latin-1") for token in tokens)
    return [
        searched[max(0, found.start() - 80) : found.end() + 80]
        for searched in (text, plain)
        for form in FORMS
        for found in re.finditer(re.escape(form), searched, re.IGNORECASE)
    ]


class Network:
    """A proxy in front of local AWS. It injects the faults that the name of a key or of a run asks for."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.removeprefix("http://")
        self.announced: list[str] = []  # requests of PutEvents
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


class RecordingEnvironment(ExecutionEnvironment):
    """An execution environment that records the errors which the function reports, with their headers."""

    def __init__(self, function: FunctionSpec, processes: Processes) -> None:
        self.errors: list[str] = []
        super().__init__(function, processes)

    def _respond(self, path: str, headers: Message, body: bytes) -> Reply:
        if path.endswith("/error"):
            self.errors.append(f"{headers} {body.decode()}")
        return super()._respond(path, headers, body)


@dataclass
class Output:
    """The output of a function over several invocations."""

    log: str = ""
    errors: list[str] = field(default_factory=list)  # of each invocation that failed
    answers: list[Any] = field(default_factory=list)  # of each invocation that succeeded


@dataclass
class Aws:
    """Local AWS with the resources of the stack, and the functions, which reach it through the network."""

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
        environment = {
            **self.environment,
            "AWS_ENDPOINT_URL": self.network.url,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return FunctionSpec(configuration, code, environment, self.folder / "unused")

    def invoke_all(self, spec: FunctionSpec, *events: Any) -> Output:
        """Invoke the function with each event, in a new execution environment. Returns its output."""
        number = len(list(self.folder.iterdir()))
        log = self.folder / f"{number}-{time.monotonic_ns()}.log"
        output = Output()
        function = RecordingEnvironment(replace(spec, log=log), self.processes)
        for event in events:
            try:
                output.answers.append(function.invoke(event, "request-1"))
            except FunctionError as error:
                output.errors.append(json.dumps(error.payload))
        function.stop()
        output.errors += function.errors
        output.log = log.read_text(errors="replace")
        return output


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
    elements = without(x_ray_elements(pixels), PIXELS) | {(0x10, 0x10): ("PN", MARKER)}
    lossless = encode_file(elements, JPEG_LOSSLESS, tail=encapsulate(encode_lossless(pixels, 8)))
    yield "compressed.dcm", lossless
    yield "ends-the-decoder.dcm", lossless.replace(b"\xff\xda", b"\xff\xd9")
    yield "deflated.dcm", dicom(pixels, syntax=DeflatedExplicitVRLittleEndian, **header)
    yield "index.csv", f"Key\n{FOLDER}scored.png\nelsewhere/{MARKER}.png\n".encode()
    yield "broken.csv", f"Key\n{FOLDER}scored.png\n".encode() + b'"\xff' + MARKER.encode()
    yield "no-column.csv", f"{MARKER}\n{FOLDER}scored.png\n".encode()


FILES = dict(_files())
INDEXES = [name for name in FILES if name.endswith(".csv")]
IMAGES = [FOLDER + name for name in FILES if "." in name and not name.endswith(".csv")] + [
    f"{FOLDER}missing.png"
]


def job(run_id: str, *keys: str) -> dict[str, Any]:
    """A job of a run that the job creator has begun."""
    run_uid = table_items()["RUN", run_id]["uid"]
    return {"RunId": run_id, "RunUid": run_uid, "Bucket": BUCKET, "Keys": list(keys)}


@pytest.fixture(scope="module")
def outputs(aws: Aws) -> dict[str, Output]:
    """The output of both functions at each log setting. They run in parallel, because they mostly wait."""
    numbers = range(len(LOGGING))
    with ThreadPoolExecutor(len(LOGGING) * 4) as pool:
        found = {
            f"job creator {n}": aws.invoke_all(aws.job_creator(LOGGING[n]), *job_creator_events(n))
            for n in numbers
        }
        running = {
            f"classifier {n}, {name}": pool.submit(
                aws.invoke_all, aws.classifier(LOGGING[n], timeout), *events
            )
            for n in numbers
            for name, (timeout, events) in classifier_events(n).items()
        }
        return found | {name: future.result() for name, future in running.items()}


def job_creator_events(number: int) -> list[Any]:
    """Events that start runs, and bad events with a key or a name in every place where one can be."""

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


def classifier_events(number: int) -> dict[str, tuple[float, list[Any]]]:
    """The events of the classifier: name -> (its timeout in seconds, events)."""
    run, key = f"run-{number}", f"{FOLDER}scored.png"
    bad_jobs = [
        MARKER.encode(),
        f'{{"RunId": "{MARKER}'.encode(),
        [MARKER],
        {"RunId": f"{MARKER}/", "Bucket": BUCKET, "Keys": [key]},
        {"RunId": run, "Bucket": BUCKET, "Keys": [MARKER, 1]},
        {"RunId": run, "Bucket": {MARKER: 1}, "Keys": [key]},
        job(run, f"{FOLDER}\ud800"),
        b"[" * 100_000 + MARKER.encode(),
    ]
    retried = [
        job(f"whole-{number}", key),  # its only image: the run is complete
        job(f"conflict-{number}", key),
        {**job(f"prefix-{number}", f"{FOLDER}throttled.png"), "Continued": True},
        {**job(run, key), "Bucket": f"no {MARKER}"},  # botocore refuses it, and quotes it
        job(run, FOLDER + "long" * 300),
    ]
    return {
        # Most of the time goes to images that S3 refuses to give out for now. The others need the rest.
        "images": (40, [kinesis_event(*(job(run, image) for image in IMAGES), *bad_jobs)]),
        "retried": (40, [kinesis_event(*retried)]),
        "crashes": (
            120,
            [
                # urllib3 logs a warning about the headers of the answer, with the URL.
                kinesis_event(job(run, f"{FOLDER}headers")),
                {"Records": [{key: key}]},
                {key: key},
                {"Jobs": [{"RunId": f"{MARKER}/", "Key": key}]},
                {"Jobs": [{"RunId": f"direct-{number}", "Key": f"{FOLDER}403.png"}]},
            ],
        ),
        # The classifier starts no image in the last ten seconds, so it has five seconds to start.
        "timeout": (15, [kinesis_event(job(run, f"{FOLDER}stalled"))]),
    }


@pytest.mark.parametrize("logging", range(len(LOGGING)))
def test_the_functions_met_the_faults(aws: Aws, outputs: dict[str, Output], logging: int) -> None:
    counted = recounted(table_items(), f"run-{logging}")
    assert {name: n for name, n in counted.items() if not name.startswith("WARNING#")} == {
        "SCORED": 6,
        "FAILED#IMAGE_MISSING": 1,
        "FAILED#IMAGE_EMPTY": 1,
        "FAILED#NOT_AN_IMAGE": 1,
        "FAILED#IMAGE_CORRUPT": 3,
        "FAILED#DICOM_NO_PIXELS": 1,
        "FAILED#DICOM_PHOTOMETRIC": 1,
    }
    images, retried, crashes, timeout = (
        outputs[f"classifier {logging}, {name}"] for name in ("images", "retried", "crashes", "timeout")
    )
    assert {"GetObject: SlowDown", "GetObject: AccessDenied"} < set(_line(images)["failures"].values())
    assert list(_line(retried)["failures"].values()) == [
        "TransactWriteItems: TransactionCanceledException",
        "BatchGetItem: ProvisionedThroughputExceededException",
        "ParamValidationError",
        "TransactWriteItems: ValidationException",
    ]
    assert (crashes.answers, timeout.answers) == ([], [])
    assert "Sandbox.Timedout" in timeout.errors[0]
    assert f"whole-{logging}" in repr(aws.network.announced)
    assert len(outputs[f"job creator {logging}"].answers) == 4


def _line(output: Output) -> dict[str, Any]:
    """The line that a function printed. The other lines are Lambda's reports."""
    (line,) = [line for line in output.log.splitlines() if '"_aws"' in line]
    return dict(json.loads(line))


def test_nothing_that_operators_see_identifies_a_patient(aws: Aws, outputs: dict[str, Output]) -> None:
    found = {
        name: find_leaks("\n".join([output.log, *output.errors, repr(output.answers)]))
        for name, output in outputs.items()
    }
    assert found == {name: [] for name in outputs}
    assert find_leaks(repr(aws.network.announced + aws.network.partition_keys)) == []


@pytest.mark.parametrize(
    "leak",
    [
        "print(event)",  # the records are base64
        "print(key)",
        "print(key.encode().hex(), file=sys.stderr)",
        "print(list(key.encode()))",
        "raise ValueError(key)",
        "logging.disable(logging.NOTSET)",  # then urllib3 logs its warning, with the URL
    ],
)
@pytest.mark.usefixtures("outputs")
def test_a_handler_that_leaks_is_caught(aws: Aws, tmp_path: Path, leak: str) -> None:
    (tmp_path / "leaky.py").write_text(
        "import base64, json, logging, sys\n"
        "from classifier.handler import handle as original\n"
        "def handle(event, context):\n"
        "    key = json.loads(base64.b64decode(event['Records'][0]['kinesis']['data']))['Keys'][0]\n"
        f"    {leak}\n"
        "    return original(event, context)\n"
    )
    spec = aws.classifier(LOGGING[0])
    command = {"ImageConfigResponse": {"ImageConfig": {"Command": ["leaky.handle"]}}}
    leaky = replace(
        spec,
        configuration={**spec.configuration, **command},
        task_root=tmp_path,
        environment={**spec.environment, "PYTHONPATH": str(spec.task_root)},
    )
    output = aws.invoke_all(leaky, kinesis_event(job("run-0", f"{FOLDER}headers")))
    assert find_leaks("\n".join([output.log, *output.errors]))


def test_direct_jobs_are_answered_with_their_keys_and_log_none(aws: Aws) -> None:
    output = aws.invoke_all(
        aws.classifier(LOGGING[0]), {"Jobs": [{"RunId": "direct", "Key": f"{FOLDER}scored.png"}]}
    )
    assert output.answers[0]["Predictions"][0]["Key"] == f"{FOLDER}scored.png"
    assert find_leaks(output.log) == []
    assert _line(output)["ImagesScored"] == 1
