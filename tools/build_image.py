"""Builds the classifier's image and sees it score an X-ray: `make image [XRAY=FILE]`.

With Docker where an engine answers. Else with buildah, as root, on a Debian base that debootstrap makes:
the same Dockerfile, another BASE_IMAGE. Writes build/image.json: `engine`, `base_mb`, `added_mb`, `layers`
and the `score` of the X-ray.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3
from classifier.model import Model
from runs.attributes import pack, unpack
from runs.layout import prediction_key
from runs.table import begin_actions

from cxr import PROJECT
from cxr.files import whole_file
from cxr.local_aws.execution_environment import ExecutionEnvironment, FunctionSpec
from cxr.local_aws.local_aws import LocalAws
from cxr.local_aws.processes import Processes
from cxr.phantoms import draw_phantom

CONTEXT = PROJECT / "containers" / "classifier"
BUILD = PROJECT / "build"
IMAGE, CONTAINER = "localhost/chest-xray-classifier", "chest-xray-smoke-test"
STORAGE = Path("/var/lib/containers/storage")  # of buildah as root
MB = 1_000_000
SAME = 1e-4  # of scores on two builds of one library
# The package registry as this machine reaches it.
PIP_FILES = ("/etc/pip.conf", "/etc/ssl/certs")


class Engine(Protocol):
    """What builds images and runs them."""

    name: str

    def build(self) -> None:
        """Builds IMAGE from CONTEXT."""

    def sizes(self) -> tuple[int, list[tuple[str, int]]]:
        """Bytes of the base, and of each layer that the Dockerfile adds, with the line that adds it."""

    def command(self, environment: Mapping[str, str]) -> list[str]:
        """What starts a container by its own entry point, on this machine's network."""

    def clean(self) -> None:
        """Removes the container."""


class Docker:
    name = "docker"

    def build(self) -> None:
        run("docker", "build", "--tag", IMAGE, str(CONTEXT))

    def sizes(self) -> tuple[int, list[tuple[str, int]]]:
        lines = output("docker", "history", "--no-trunc", "--human=false", "--format", "{{json .}}", IMAGE)
        history = [json.loads(line) for line in reversed(lines.splitlines())]
        ours = next(i for i, entry in enumerate(history) if "PYTHONPATH=/opt/python" in entry["CreatedBy"])
        added = [(entry["CreatedBy"], int(entry["Size"])) for entry in history[ours:] if int(entry["Size"])]
        return sum(int(entry["Size"]) for entry in history[:ours]), added

    def command(self, environment: Mapping[str, str]) -> list[str]:
        variables = (f"--env={name}={value}" for name, value in environment.items())
        return ["docker", "run", "--rm", "--network=host", *variables, IMAGE]

    def clean(self) -> None:
        """Docker's --rm has removed it."""


@dataclass
class Buildah:
    """As root and without a daemon; the vfs driver and chroot isolation need nothing of the kernel."""

    name = "buildah"
    base = "localhost/debian-python"

    def build(self) -> None:
        self._make_base()
        options = [f"--volume={path}:{path}:ro" for path in PIP_FILES if Path(path).exists()]
        run(
            *("buildah", "--storage-driver=vfs", "bud", "--layers", "--isolation=chroot", "--network=host"),
            *(*options, f"--build-arg=BASE_IMAGE={self.base}", f"--tag={IMAGE}", str(CONTEXT)),
        )

    def sizes(self) -> tuple[int, list[tuple[str, int]]]:
        images = [self._inspect(name) for name in (self.base, IMAGE)]
        base, whole = (len(image["OCIv1"]["rootfs"]["diff_ids"]) for image in images)
        layers = {
            layer["diff-digest"]: layer["diff-size"]
            for layer in json.loads((STORAGE / "vfs-layers" / "layers.json").read_text())
            if "diff-digest" in layer
        }
        bytes_of = [layers[digest] for digest in images[1]["OCIv1"]["rootfs"]["diff_ids"]]
        lines = [
            entry["created_by"] for entry in images[1]["OCIv1"]["history"] if not entry.get("empty_layer")
        ]
        return sum(bytes_of[:base]), list(zip(lines[base:], bytes_of[base:whole], strict=True))

    def command(self, environment: Mapping[str, str]) -> list[str]:
        output("buildah", "--storage-driver=vfs", "from", f"--name={CONTAINER}", IMAGE)
        config = self._inspect(IMAGE)["OCIv1"]["config"]
        variables = (f"--env={name}={value}" for name, value in environment.items())
        started = [
            "buildah",
            "--storage-driver=vfs",
            "run",
            "--isolation=chroot",
            "--network=host",
            *variables,
        ]
        return [*started, CONTAINER, "--", *config["Entrypoint"], *config["Cmd"]]

    def clean(self) -> None:
        run("buildah", "--storage-driver=vfs", "rm", CONTAINER)

    def _inspect(self, image: str) -> dict[str, Any]:
        text = output("buildah", "--storage-driver=vfs", "inspect", "--type=image", image)
        return dict(json.loads(text))

    def _make_base(self) -> None:
        """A minimal Debian with Python, kept from one build to the next."""
        found = output("buildah", "--storage-driver=vfs", "images", "--format={{.Name}}")
        if self.base in found.split():
            return
        folder = BUILD / "debian"
        shutil.rmtree(folder, ignore_errors=True)
        packages = "python3,python3-pip,ca-certificates"
        run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(folder))
        container = output("buildah", "--storage-driver=vfs", "from", "scratch").strip()
        run("buildah", "--storage-driver=vfs", "copy", "--quiet", container, str(folder), "/")
        run("buildah", "--storage-driver=vfs", "commit", "--quiet", "--rm", container, self.base)
        shutil.rmtree(folder)


def engine() -> Engine:
    """Docker if its engine answers, else buildah. Exits where neither is to be had."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "info"], capture_output=True).returncode == 0:  # noqa: S603 - ours
        return Docker()
    if shutil.which("buildah") and shutil.which("debootstrap") and os.geteuid() == 0:
        return Buildah()
    sys.exit("make image: start Docker; or, as root on Debian, apt-get install buildah debootstrap")


def smoke_test(engine: Engine, xray: bytes) -> float:
    """The score that a container gives the X-ray, asked as Lambda asks it: one Kinesis event, by the Runtime
    API, to its own entry point, with S3 and DynamoDB on local AWS.
    """
    model = Model(CONTEXT / "model")
    with LocalAws() as aws:
        boto3.client("s3").create_bucket(Bucket="images")
        boto3.client("s3").put_object(Bucket="images", Key="x.png", Body=xray)
        boto3.client("dynamodb").create_table(
            TableName="runs",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        )
        fields = {"uid": "smoke", "state": "LISTING", "model_sha256": model.sha256}
        actions: Any = begin_actions("runs", "smoke", fields)
        boto3.client("dynamodb").transact_write_items(TransactItems=actions)
        processes = Processes()
        spec = FunctionSpec(
            {
                "FunctionName": "classifier",
                "FunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:classifier",
                "Timeout": 120,
                "MemorySize": 1769,
                "Environment": {"Variables": {"TABLE_NAME": "runs", "BUCKET_NAME": "images"}},
            },
            task_root=CONTEXT,
            environment=aws.environment,
            log=aws.logs / "container.log",
            start=engine.command,
        )
        job = json.dumps(
            {"RunId": "smoke", "RunUid": "smoke", "Bucket": "images", "Keys": ["x.png"]}
        ).encode()
        record = {"kinesis": {"sequenceNumber": "1", "data": base64.b64encode(job).decode()}}
        container = ExecutionEnvironment(spec, processes)
        try:
            answer = container.invoke({"Records": [record]}, "smoke")
        finally:
            container.stop()
            engine.clean()
        if answer != {"batchItemFailures": []}:
            sys.exit(f"make image: the container answered {answer}\n{spec.log.read_text()}")
        found = boto3.client("dynamodb").get_item(
            TableName="runs", Key=pack(prediction_key("smoke", "x.png"))
        )
    scores = unpack(found["Item"])["scores"]
    expected = model.score([model.prepare(xray)[0]])[0]
    if any(abs(scores[label] - score) > SAME for label, score in expected.items()):
        sys.exit(f"make image: the container scores {scores}, this machine {expected}")
    return float(next(iter(scores.values())))


def run(*command: str) -> None:
    """Runs a command that prints to the terminal. Exits if it fails."""
    if subprocess.run(command).returncode:  # noqa: S603 - every command is ours, no shell
        sys.exit(f"make image: `{' '.join(command[:3])} ...` failed")


def output(*command: str) -> str:
    """What a command prints. Raises CalledProcessError."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - as above
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--xray", type=Path, metavar="FILE", help="image to score; default: a drawing")
    xray = parser.parse_args().xray
    if xray:
        data = xray.read_bytes()
    else:
        drawing = io.BytesIO()
        draw_phantom(0, opacity=True).save(drawing, "PNG")
        data = drawing.getvalue()
    chosen = engine()
    chosen.build()
    base, added = chosen.sizes()
    score = smoke_test(chosen, data)
    print(f"\n{base / MB:7.1f} MB  base")
    for line, size in added:
        print(f"{size / MB:7.1f} MB  {line[:90]}")
    added_mb = round(sum(size for _, size in added) / MB, 1)
    print(f"{added_mb:7.1f} MB  added; the container scores {'the X-ray' if xray else 'a drawing'} {score}")
    BUILD.mkdir(exist_ok=True)
    with whole_file(BUILD / "image.json") as part:
        layers = [{"line": line, "mb": round(size / MB, 1)} for line, size in added]
        document = {
            "engine": chosen.name,
            "base_mb": round(base / MB, 1),
            "added_mb": added_mb,
            "layers": layers,
            "score": score,
        }
        part.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
