"""Faults on the wire: the deployed stack on local AWS, with a faulty network between boto3 and the endpoint.

    python -m reliability.wire [--images 2000] [--seed 0] [--images-from DIR] [--write docs/reliability.md]

`FaultyEndpoint` is what the classifier's processes, the job creator and `cxr retry` take for AWS. It passes
requests on to MiniStack and spoils some of them; meanwhile `Killer` ends classifiers by SIGKILL. A run must
come through: each expected image ends with exactly one prediction, or its job is in the failure bucket, from
where `cxr retry` brings the rest. Faults are drawn by the seed, but the order of requests is not: a run with
the same seed is alike, not the same. See docs/reliability.md.
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
from cxr.errors import Failed
from cxr.failure_bucket import jobs_in, objects
from cxr.local_aws.execution_environment import Function
from cxr.local_aws.local_aws import LocalAws
from cxr.operations import start_run
from cxr.phantoms import draw_phantom
from cxr.retry import retry_run
from cxr.runs import run_status, run_table
from cxr.stack import Stack, client
from cxr.words import counted
from reliability.endpoint import LOST, FaultyEndpoint
from tools.markdown import place, put_table

# Few retries and little to bisect: some jobs end in the failure bucket. One batch of two jobs a shard at a
# time: one that is done comes again with one that is not.
SETTINGS = ("shards=3", "parallelizationFactor=1", "imagesPerJob=8", "batchSize=2", "retries=1")
KILL_SECONDS = 6.0  # from one SIGKILL to the next, on average; at most twice that
# Without a delivery, until all is delivered: MiniStack looks into the stream every second, if it has the CPU.
QUIET_SECONDS, QUIET_SECONDS_COMPLETE = 6.0, 2.0
FAULTY_RETRIES = 2  # calls of `cxr retry` while the faults go on
ATTEMPTS = 20  # of a person to start a run or to retry it, while the network is bad
DRAWINGS, SIZE = 64, 256  # phantoms where no images are given, and their pixels a side
MOST_DISTINCT = 200  # files that are taken from a folder; every image of the run is a copy of one

Expected = Mapping[str, str | Mapping[str, Decimal]]  # key -> its scores, or its error code


class Killer:
    """Ends a running classifier by SIGKILL every now and then, in `with Killer(seed)`."""

    def __init__(self, seed: int) -> None:
        self.kills = 0
        self._random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopped.wait(self._random.uniform(0, 2 * KILL_SECONDS)):
            running = []
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it has ended meanwhile
                    if "awslambdaric" in process.cmdline():
                        running.append(process)
            if running:
                with suppress(psutil.NoSuchProcess):
                    self._random.choice(running).kill()
                    self.kills += 1


class WireAws(LocalAws):
    """Local AWS whose functions reach it by a `FaultyEndpoint`; the classifier is the folder `task_root`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.task_root = PROJECT / "containers" / "classifier"
        self.seed = seed
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Start it all. Raises LocalAwsError."""
        super().__enter__()
        self.endpoint = FaultyEndpoint(
            self.environment["AWS_ENDPOINT_URL"].removeprefix("http://"), self.seed
        )
        self._exits.callback(self.endpoint.close)
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop it all."""
        super().__exit__(*error)
        self._exits.close()

    def deploy(self, *context: str) -> dict[str, str]:
        """Deploy, and lead the job creator to the faulty endpoint. Raises LocalAwsError."""
        outputs = super().deploy(*context)
        self.configure(outputs["JobCreatorName"], AWS_ENDPOINT_URL=self.endpoint.url)
        return outputs

    def configure(self, function: str, **variables: str) -> None:
        """Give a function more environment variables, and with that new execution environments."""
        functions = self.client("lambda")
        found = functions.get_function_configuration(FunctionName=function)["Environment"]["Variables"]
        functions.update_function_configuration(
            FunctionName=function, Environment={"Variables": found | variables}
        )

    def serve(self, stack: Stack, task_root: Path) -> None:
        """Have another folder be the classifier."""
        self.task_root = task_root
        self.configure(stack.classifier, TASK_ROOT=str(task_root))

    @contextmanager
    def operator(self) -> Iterator[None]:
        """Have what this process asks of AWS go by the faulty endpoint, too."""
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
class Found:
    """What a run under faults came to."""

    images: int
    faults: Counter[str]
    kills: int
    starts: int  # invocations of the job creator until one went through
    waiting: int  # images in the failure bucket when all had been delivered
    retries: int  # of `cxr retry`, until the run was complete
    lost: int  # images without a prediction that are in no failure object, or have none at the end
    doubled: int  # counts beyond the predictions, SCORED predictions put again, images with two predictions
    # Predictions of another score or code, or of no image of the run; counts short of them; more Run Complete
    # events than one and those whose answer was lost.
    wrong: int
    events: int  # Run Complete; none if a classifier was killed between completing the run and saying so
    state: str
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether all was kept that is promised."""
        return self.state == "COMPLETE" and not (self.lost or self.doubled or self.wrong)


def bodies(folder: Path | None) -> list[bytes]:
    """The files of a folder, at most MOST_DISTINCT of them from all over it; without one, phantoms."""
    if folder:
        files = sorted(path for path in folder.rglob("*.png") if path.is_file())
        if not files:
            raise Failed(f"{folder}: no PNG file there; give --images-from a folder of X-rays")
        return [path.read_bytes() for path in files[:: -(-len(files) // MOST_DISTINCT)]]
    drawn = []
    for number in range(DRAWINGS):
        file = io.BytesIO()
        drawing = draw_phantom(number, opacity=bool(number % 2))
        drawing.resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(file, "PNG")
        drawn.append(file.getvalue())
    return drawn


def put_images(stack: Stack, folder: str, images: Sequence[bytes], count: int) -> Expected:
    """Put `count` images below prefix + folder, one in ten of them bad, and their index.csv; what they must
    come to."""
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


def score(
    aws: WireAws,
    stack: Stack,
    run: str,
    expected: Expected,
    tell: Callable[[str], object] = lambda _: None,
) -> Found:
    """Run what `put_images` put below the folder `run`, under faults, and see what becomes of it.

    `cxr retry` follows: FAULTY_RETRIES times while the faults go on, then until the run is complete.
    """
    endpoint, started = aws.endpoint, time.monotonic()
    table, before = run_table(stack), endpoint.faults.copy()

    def settle(doing: str) -> str:
        """Wait until all is delivered; the run's state."""
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
        with aws.operator(), suppress(Failed, ClientError, BotoCoreError):  # a person would repeat it
            retry_run(stack, run)
        return settle("cxr retry")

    with endpoint.spoiling(), Killer(aws.seed) as killer:
        starts = start(aws, stack, run)
        state = settle("first delivery")
        found, waiting = _predicted(stack, run), _waiting(stack, run)
        lost = expected.keys() - found.keys() - waiting
        retries = 0
        while state != "COMPLETE" and retries < FAULTY_RETRIES and not lost:
            state, retries = retry(), retries + 1
    while state != "COMPLETE" and retries < ATTEMPTS and not lost:
        state, retries = retry(), retries + 1

    waited, found = len(waiting - found.keys()), _predicted(stack, run)
    kept = run_status(table, run).counts
    recounted = counts_of(each for each, *_ in found.values())
    faults, events = endpoint.faults - before, endpoint.announced(run)
    return Found(
        images=len(expected),
        faults=faults,
        kills=killer.kills,
        starts=starts,
        waiting=waited,
        retries=retries,
        lost=len(lost | (expected.keys() - found.keys())),
        doubled=(kept - recounted).total()
        + sum(len(each) - 1 for each in found.values())
        + endpoint.rewritten(run),
        wrong=(recounted - kept).total()
        + sum(expected.get(key) != (each.error or each.scores) for key, (each, *_) in found.items())
        + max(0, events - 1 - faults[f"AWSEvents: {LOST}"]),
        events=events,
        state=state,
        seconds=time.monotonic() - started,
    )


def start(aws: WireAws, stack: Stack, run: str) -> int:
    """Start the run, by the same event until it goes through; how many times.

    Raises Failed and BotoCoreError, as the last of ATTEMPTS does.
    """
    for starts in range(1, ATTEMPTS):
        with aws.operator(), suppress(Failed, BotoCoreError):
            start_run(stack, run, index=f"{stack.prefix}{run}/index.csv")
            return starts
    with aws.operator():
        start_run(stack, run, index=f"{stack.prefix}{run}/index.csv")
    return ATTEMPTS


def _predicted(stack: Stack, run: str) -> dict[str, list[Prediction]]:
    """What there is of every image: key -> its predictions, of which there should be one."""
    found: dict[str, list[Prediction]] = {}
    for prediction in run_table(stack).predictions(run):
        found.setdefault(prediction.key, []).append(prediction)
    return found


def _waiting(stack: Stack, run: str) -> set[str]:
    """The run's images whose job is in the failure bucket."""
    s3 = client("s3")
    jobs = (
        job
        for entry in objects(s3, stack.failure_bucket)
        for job in jobs_in(s3, stack.failure_bucket, entry["Key"])
    )
    return {key for job in jobs if job.run_id == run for key in job.keys}


def totals(found: Found) -> list[tuple[str, str]]:
    """What the run came to, as rows of a table."""
    return [
        *((fault, f"{number:,}") for fault, number in sorted(found.faults.items())),
        ("faults injected", f"{found.faults.total():,}"),
        ("classifiers killed", f"{found.kills:,}"),
        ("invocations of the job creator until one went through", f"{found.starts:,}"),
        ("images", f"{found.images:,}"),
        ("in the failure bucket before `cxr retry`", f"{found.waiting:,}"),
        ("calls of `cxr retry`", f"{found.retries:,}"),
        ("state", found.state),
        ("lost", f"{found.lost:,}"),
        ("doubled", f"{found.doubled:,}"),
        ("wrong", f"{found.wrong:,}"),
        ("Run Complete events", f"{found.events:,}"),
        ("seconds", f"{found.seconds:,.0f}"),
    ]


def main() -> int:
    """Deploy, run and print; 1 if anything is lost, doubled or wrong."""
    parser = argparse.ArgumentParser(prog="python -m reliability.wire", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="how many (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of faults and kills (0)")
    parser.add_argument("--images-from", type=Path, metavar="DIR", help="X-rays in PNG; else drawings")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the totals into docs/reliability.md")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images {arguments.images}: expected at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.write:
            place(arguments.write, "wire")  # what cannot be written is said now
        images = bodies(arguments.images_from)
        with notes.status("deploying") as doing, WireAws(arguments.seed) as aws:
            stack = Stack.of(aws.deploy(*SETTINGS))
            doing.update("putting images")
            expected = put_images(stack, "wire", images, arguments.images)
            found = score(aws, stack, "wire", expected, doing.update)
    except Failed as error:
        notes.print(f"Error: {error}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for row in totals(found):
        table.add_row(*row)
    console.print(table)
    if arguments.write:
        command = f"python -m reliability.wire --images {found.images} --seed {arguments.seed}"
        put_table(arguments.write, "wire", command, totals(found))
    return 0 if found.sound else 1


if __name__ == "__main__":
    sys.exit(main())
