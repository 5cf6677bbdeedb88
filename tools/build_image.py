"""Builds the classifier's image with Docker and scores an X-ray in a container of it: `make image`.

Prints what the layers weigh, and writes build/image.json: `base_mb`, `added_mb`, `layers` and the `score`.
On Docker Desktop, enable host networking: the container must reach local AWS on this machine.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from pathlib import Path

import boto3
from classifier.model import Model

from cxr import PROJECT
from cxr.files import whole_file
from cxr.local_aws.local_aws import LocalAws
from cxr.phantoms import draw_phantom
from stacks.image_context import DOCKERFILE, SHIPPED, image_context

IMAGE = "chest-xray-classifier"
MB = 1_000_000
TOLERANCE = 1e-4  # between the scores of two builds of one library


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the classifier's image and score an X-ray in it.")
    parser.add_argument("--base", help="image to build it on; default: AWS's own, as the Dockerfile says")
    parser.add_argument("--xray", type=Path, metavar="FILE", help="image to score; default: a drawing")
    parser.add_argument("--model", type=Path, metavar="DIR", default=SHIPPED, help="bundle to build in")
    options = parser.parse_args()
    xray = options.xray.read_bytes() if options.xray else drawing()
    build(options.base, options.model)
    base, added = sizes()
    score = check_score(xray, options.model)
    print(f"\n{base / MB:7.1f} MB  base")
    for line, size in added:
        print(f"{size / MB:7.1f} MB  {line[:90]}")
    added_mb = round(sum(size for _, size in added) / MB, 1)
    print(f"{added_mb:7.1f} MB  added; {IMAGE} scores {'the X-ray' if options.xray else 'a drawing'} {score}")
    (PROJECT / "build").mkdir(exist_ok=True)
    with whole_file(PROJECT / "build" / "image.json") as part:
        layers = [{"line": line, "mb": round(size / MB, 1)} for line, size in added]
        document = {"base_mb": round(base / MB, 1), "added_mb": added_mb, "layers": layers, "score": score}
        part.write_text(json.dumps(document, indent=2) + "\n")


def drawing() -> bytes:
    """A PNG of a chest phantom."""
    file = io.BytesIO()
    draw_phantom(0, opacity=True).save(file, "PNG")
    return file.getvalue()


def build(base: str | None, bundle: Path) -> None:
    """Build IMAGE with the model of a bundle, on `base` if it is given. Exits where Docker fails."""
    argument = [f"--build-arg=BASE_IMAGE={base}"] if base else []
    command = ["docker", "build", "--network=host", "--tag", IMAGE, *argument]
    try:
        with image_context(bundle) as context:
            command += ["--file", str(context / DOCKERFILE), str(context)]
            subprocess.run(command, check=True)  # noqa: S603 - ours
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"make image: docker build failed ({error}); is Docker installed and running?")


def sizes() -> tuple[int, list[tuple[str, int]]]:
    """Bytes of the base, and of each layer that the Dockerfile adds, with the line that adds it."""
    command = ["docker", "history", "--no-trunc", "--human=false", "--format={{json .}}", IMAGE]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - ours
    history = [json.loads(line) for line in reversed(lines.splitlines())]
    first = next(i for i, entry in enumerate(history) if "PYTHONPATH=/opt/python" in entry["CreatedBy"])
    added = [(entry["CreatedBy"], int(entry["Size"])) for entry in history[first:] if int(entry["Size"])]
    return sum(int(entry["Size"]) for entry in history[:first]), added


def check_score(xray: bytes, bundle: Path) -> float:
    """The score that a container gives the X-ray, as a function of the stack deployed to local AWS.

    Exits if this machine's score differs.
    """
    with LocalAws(image=IMAGE) as aws:
        outputs = aws.deploy(f"model={bundle.absolute()}")
        key = f"{outputs['KeyPrefix']}x.png"
        boto3.client("s3").put_object(Bucket=outputs["ImagesBucketName"], Key=key, Body=xray)
        payload = json.dumps({"Jobs": [{"RunId": "image", "Key": key}]})
        answer = aws.client("lambda").invoke(FunctionName=outputs["ClassifierName"], Payload=payload)
        document = json.load(answer["Payload"])
        log = (aws.logs / "classifier.log").read_text()
    scores = document.get("Predictions", [{}])[0].get("Scores")
    if not scores:
        sys.exit(f"make image: the container answered {document}\n{log}")
    model = Model(bundle)
    expected = model.score([model.prepare(xray)[0]])[0]
    if any(abs(scores[label] - float(score)) > TOLERANCE for label, score in expected.items()):
        sys.exit(f"make image: the container scores {scores}, this machine {expected}")
    return float(next(iter(scores.values())))


if __name__ == "__main__":
    main()
