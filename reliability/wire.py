"""Test a run on local AWS with a faulty network and classifiers that are killed.

    python -m reliability.wire [--images 2000] [--seed 0] [--images-from DIR] [--write docs/reliability.md]

The classifier, the job creator and `cxr retry` reach MiniStack through a `FaultyEndpoint`, which injects
faults. Meanwhile `Killer` kills classifiers with SIGKILL. Each expected image must end with exactly one
prediction, or its job is in the failure bucket, from which `cxr retry` sends the rest. The seed determines
the faults but not the order of the requests, so two runs with the same seed differ. See docs/reliability.md.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from botocore.exceptions import BotoCoreError, ClientError
from classifier.model import Model
from PIL import Image
from rich.table import Table
from runs.predictions import Prediction, counts_of

from cxr import PROJECT
from cxr.commands.terminal import console, notes
from cxr.errors import Failed, InputError
from cxr.failure_bucket import jobs_in, objects
from cxr.local_aws.execution_environment import Function
from cxr.local_aws.local_aws import LocalAws
from cxr.operations import start_run
from cxr.phantoms import draw_phantom
from cxr.retry import retry_run
from cxr.runs import run_status, run_table
from cxr.stack import Stack, client
from cxr.words import counted
from reliability.endpoint import LOST_ANSWER, FaultyEndpoint
from tools.markdown import place, put_table

# With one retry and batches of two jobs, some jobs end in the failure bucket, and some jobs that are done are
# delivered again because the other job of their batch is not.
SETTINGS = ("shards=3", "parallelizationFactor=1", "imagesPerJob=8", "batchSize=2", "retries=1")
KILL_SECONDS = 6.0  # mean time from one SIGKILL to the next; at most twice that
# All jobs are delivered if no batch was delivered for this long. Local AWS reads the stream once a second, or
# less often on a busy machine.
QUIET_SECONDS, QUIET_SECONDS_COMPLETE = 6.0, 2.0
FAULTY_RETRIES = 2  # calls of `cxr retry` with faults
ATTEMPTS = 20  # the most times that the operator starts or retries the run
DRAWINGS, SIZE = 64, 256  # phantoms if no images are given, and their width and height in pixels
MAX_FILES = 200  # that are read from a folder; the images of the run are copies of them

Expected = Mapping[str, str | Mapping[str, Decimal]]  # key -> its scores, or its error code


class Killer:
    """Kills a running classifier with SIGKILL now and then, in a block `with Killer(seed):`."""

    def __init__(self, seed: int) -> None:
        self.kills = 0
        self._random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _kill(self) -> None:
        while not self._stopped.wait(self._random.uniform(0, 2 * KILL_SECONDS)):
            running = []
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it has just ended
                    if "awslambdaric" in process.cmdline():
                        running.append(process)
            if running:
                with suppress(psutil.NoSuchProcess):
                    self._random.choice(running).kill()
                    self.kills += 1


class WireAws(LocalAws):
    """Local AWS whose functions reach it through a `FaultyEndpoint`. `task_root` holds the classifier."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.task_root = PROJECT / "containers" / "classifier"
        self.seed = seed
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Start local AWS and the endpoint. Raises LocalAwsError."""
        super().__enter__()
        self.endpoint = FaultyEndpoint(
            self.environment["AWS_ENDPOINT_URL"].removeprefix("http://"), self.seed
        )
        self._exits.callback(self.endpoint.close)
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop both."""
        super().__exit__(*error)
        self._exits.close()

    def deploy(self, *context: str) -> dict[str, str]:
        """Deploy the stack, and let the job creator use the faulty endpoint. Raises LocalAwsError."""
        outputs = super().deploy(*context)
        self.configure(outputs["JobCreatorName"], AWS_ENDPOINT_URL=self.endpoint.url)
        return outputs

    def configure(self, function: str, **variables: str) -> None:
        """Add environment variables to a function. It starts new execution environments."""
        functions = self.client("lambda")
        found = functions.get_function_configuration(FunctionName=function)["Environment"]["Variables"]
        functions.update_function_configuration(
            FunctionName=function, Environment={"Variables": found | variables}
        )

    def serve(self, stack: Stack, task_root: Path) -> None:
        """Use another folder as the classifier."""
        self.task_root = task_root
        self.configure(stack.classifier, TASK_ROOT=str(task_root))

    @contextmanager
    def operator(self) -> Iterator[None]:
        """Let this process use the faulty endpoint, too, as an operator with a bad network."""
        os.environ["AWS_ENDPOINT_URL"] = self.endpoint.url
        try:
            yield
        finally:
            os.environ["AWS_ENDPOINT_URL"] = self.environment["AWS_ENDPOINT_URL"]

    def _make_function(self, configuration: Mapping[str, Any]) -> Function:
        function = super()._make_function(configuration)
        environment = {**function.spec.environment, "AWS_ENDPOINT_URL": self.endpoint.url}
        function.spec = replace(function.spec, task_root=self.task_root, environment=environment)
        return function


@dataclass(frozen=True)
class Result:
    """The result of a run with faults."""

    images: int
    faults: Counter[str]
    kills: int
    starts: int  # invocations of the job creator until one succeeded
    waiting: int  # images without a prediction that were in the failure bucket after the first delivery
    retries: int  # calls of `cxr retry` until the run was complete
    lost: int  # images without a prediction that were in no failure object, or without one at the end
    doubled: int  # counts above the predictions, SCORED predictions written again, second predictions
    # Predictions with a wrong score or code, or of no image of the run; counts below the predictions; Run
    # Complete events after the first one, unless the answer to one was lost.
    wrong: int
    events: int  # Run Complete; 0 if a classifier was killed between completing the run and sending it
    state: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the promise of docs/reliability.md was kept."""
        return self.state == "COMPLETE" and not (self.lost or self.doubled or self.wrong)


def read_images(folder: Path | None) -> list[bytes]:
    """At most MAX_FILES PNG files, spread over the folder; without a folder, phantoms. Raises Failed."""
    if folder:
        files = sorted(path for path in folder.rglob("*.png") if path.is_file())
        if not files:
            raise Failed(f"{folder}: no PNG files found; expected a folder of X-rays")
        return [path.read_bytes() for path in files[:: -(-len(files) // MAX_FILES)]]
    drawn = []
    for number in range(DRAWINGS):
        file = io.BytesIO()
        drawing = draw_phantom(number, opacity=bool(number % 2))
        drawing.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(file, "PNG")
        drawn.append(file.getvalue())
    return drawn


def put_images(stack: Stack, folder: str, images: Sequence[bytes], count: int) -> Expected:
    """Put `count` images and their index.csv under the prefix + `folder`. One image in ten is bad.

    Returns the prediction that each image must get.
    """
    model = Model(PROJECT / "containers" / "classifier" / "model")
    scores = [model.score([model.prepare(image)[0]])[0] for image in images]
    bad: list[tuple[bytes | None, str]] = [
        (None, "IMAGE_MISSING"),
        (b"", "IMAGE_EMPTY"),
        (images[0][: len(images[0]) // 2], "IMAGE_CORRUPT"),
        (b"no image", "NOT_AN_IMAGE"),
    ]
    s3 = client("s3")
    expected: dict[str, str | Mapping[str, Decimal]] = {}
    for number in range(count):
        key = f"{stack.prefix}{folder}/{number:05}.png"
        good = number % 10
        body, code = (images[number % len(images)], "") if good else bad[number // 10 % len(bad)]
        expected[key] = code or scores[number % len(images)]
        if body is not None:
            s3.put_object(Bucket=stack.images_bucket, Key=key, Body=body)
    index = "".join(f"{key}\n" for key in ("Key", *expected))
    s3.put_object(Bucket=stack.images_bucket, Key=f"{stack.prefix}{folder}/index.csv", Body=index.encode())
    return expected


def run_with_faults(
    aws: WireAws,
    stack: Stack,
    run: str,
    expected: Expected,
    tell: Callable[[str], object] = lambda _: None,
) -> Result:
    """Run the images that `put_images` has put into the folder `run`, with faults. Returns the result.

    Until the run is complete, it calls `cxr retry`: FAULTY_RETRIES times with faults, then without.
    """
    endpoint, started = aws.endpoint, time.monotonic()
    table, before = run_table(stack), endpoint.faults.copy()

    def settle(doing: str) -> str:
        """Wait until all jobs are delivered. Returns the state of the run."""
        quiet_since = time.monotonic()
        while True:
            status = run_status(table, run)
            enough = QUIET_SECONDS_COMPLETE if status.state == "COMPLETE" else QUIET_SECONDS
            if time.monotonic() - quiet_since > enough:
                return status.state
            tell(
                f"{doing}: {status.done} of {counted(len(expected), 'image')}, "
                f"{counted((endpoint.faults - before).total(), 'fault')}, {counted(killer.kills, 'kill')}"
            )
            time.sleep(0.5)
            if aws.delivering:
                quiet_since = time.monotonic()

    def retry() -> str:
        with aws.operator(), suppress(Failed, ClientError, BotoCoreError):  # an operator would repeat it
            retry_run(stack, run)
        return settle("cxr retry")

    with endpoint.injecting(), Killer(aws.seed) as killer:
        starts = start_until_accepted(aws, stack, run)
        state = settle("first delivery")
        found, waiting = _predicted(stack, run), _waiting(stack, run)
        lost = expected.keys() - found.keys() - waiting
        retries = 0
        while state != "COMPLETE" and retries < FAULTY_RETRIES and not lost:
            state, retries = retry(), retries + 1
    while state != "COMPLETE" and retries < ATTEMPTS and not lost:
        state, retries = retry(), retries + 1

    waiting_images, found = len(waiting - found.keys()), _predicted(stack, run)
    stored = run_status(table, run).counts
    recounted = counts_of(each for each, *_ in found.values())
    faults, events = endpoint.faults - before, endpoint.announced(run)
    return Result(
        images=len(expected),
        faults=faults,
        kills=killer.kills,
        starts=starts,
        waiting=waiting_images,
        retries=retries,
        lost=len(lost | (expected.keys() - found.keys())),
        doubled=(stored - recounted).total()
        + sum(len(each) - 1 for each in found.values())
        + endpoint.rewritten(run),
        wrong=(recounted - stored).total()
        + sum(expected.get(key) != (each.error or each.scores) for key, (each, *_) in found.items())
        + max(0, events - 1 - faults[f"AWSEvents: {LOST_ANSWER}"]),
        events=events,
        state=state,
        seconds=time.monotonic() - started,
    )


def start_until_accepted(aws: WireAws, stack: Stack, run: str) -> int:
    """Start the run with the same event until that succeeds. Returns the number of attempts.

    Raises what the last of ATTEMPTS raises: Failed, InputError (S3 refused the index) or BotoCoreError.
    """
    for starts in range(1, ATTEMPTS):
        with aws.operator(), suppress(Failed, InputError, BotoCoreError):
            start_run(stack, run, index=f"{stack.prefix}{run}/index.csv")
            return starts
    with aws.operator():
        start_run(stack, run, index=f"{stack.prefix}{run}/index.csv")
    return ATTEMPTS


def _predicted(stack: Stack, run: str) -> dict[str, list[Prediction]]:
    """The predictions in the table: key -> its predictions, of which there must be one."""
    found: dict[str, list[Prediction]] = {}
    for prediction in run_table(stack).predictions(run):
        found.setdefault(prediction.key, []).append(prediction)
    return found


def _waiting(stack: Stack, run: str) -> set[str]:
    """The images of the run whose job is in the failure bucket."""
    s3 = client("s3")
    jobs = (
        job
        for entry in objects(s3, stack.failure_bucket)
        for job in jobs_in(s3, stack.failure_bucket, entry["Key"])
    )
    return {key for job in jobs if job.run_id == run for key in job.keys}


def rows(result: Result) -> list[tuple[str, str]]:
    """The result as rows of a table."""
    return [
        *((fault, f"{number:,}") for fault, number in sorted(result.faults.items())),
        ("faults injected", f"{result.faults.total():,}"),
        ("classifiers killed", f"{result.kills:,}"),
        ("invocations of the job creator until one succeeded", f"{result.starts:,}"),
        ("images", f"{result.images:,}"),
        ("in the failure bucket before `cxr retry`", f"{result.waiting:,}"),
        ("calls of `cxr retry`", f"{result.retries:,}"),
        ("state", result.state),
        ("lost", f"{result.lost:,}"),
        ("doubled", f"{result.doubled:,}"),
        ("wrong", f"{result.wrong:,}"),
        ("Run Complete events", f"{result.events:,}"),
        ("seconds", f"{result.seconds:,.0f}"),
    ]


def main() -> int:
    """Deploy, run and print the result. Returns 1 if an image was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(prog="python -m reliability.wire", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--images", type=int, default=2000, metavar="N", help="number of images (default: 2000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults and kills (default: 0)")
    parser.add_argument(
        "--images-from", type=Path, metavar="DIR", help="a folder of X-rays as PNG files (default: drawings)"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the result to docs/reliability.md")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images {arguments.images}: expected at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.write:
            place(arguments.write, "wire")  # fail now rather than after the run
        images = read_images(arguments.images_from)
        with notes.status("deploying") as doing, WireAws(arguments.seed) as aws:
            stack = Stack.of(aws.deploy(*SETTINGS))
            doing.update("putting images")
            expected = put_images(stack, "wire", images, arguments.images)
            result = run_with_faults(aws, stack, "wire", expected, doing.update)
    except (Failed, InputError) as error:
        notes.print(f"Error: {error}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    if arguments.write:
        command = f"python -m reliability.wire --images {result.images} --seed {arguments.seed}"
        put_table(arguments.write, "wire", command, rows(result))
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
