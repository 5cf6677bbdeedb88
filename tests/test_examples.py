"""Type what README and docs show, on local AWS, and compare what is printed with what they show."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support import ROOT, XRAYS, client, wait_for

from cxr.local_aws.local_aws import LocalAws
from cxr.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("examples")]
IMAGES, XRAY = "path/to/your/images", "00000398_000.png"

# Examples that are not typed here, by the start of their command.
NOT_TYPED = {
    ".venv/bin/cxr local up": "it runs until Ctrl-C; tests/test_local.py starts it",
    ".venv-training/": "it needs torch; tests/training types it",
    "cxr model pack resnet.onnx": "its resnet.onnx is made by torch; tests/test_packing.py packs networks",
    "cxr model check my-model": "as above",
    "cxr local demo --bundle my-model": "as above",
}
# What differs from one run, machine or deployment to the next, and what it may be.
VARIABLE = {
    r"\d{4}-\d\d-\d\d \d\d:\d\d": r"\d{4}-\d\d-\d\d \d\d:\d\d",
    r"\b[\d.,]+ images/s(?:, in [\d.]+ s)?": r"[\d.,]+ images/s(?:, in [\d.]+ s)?",
    r"\b\d+(?:\.\d+)? s\b": r"\d+(?:\.\d+)? s",
    r"\bv\d+\.\d+\.\d+": r"v\d+\.\d+\.\d+",
    r"chestxray-[\w-]+": r"chestxray-[\w-]+",
    r"(?<=[✓!] Docker) .*": r" .*(?:\n +→.*)?",  # the machine may have none
    r"(?<=region       us-east-1)": r"(?:, at http://127.0.0.1:\d+)?",
}


class Example(NamedTuple):
    """A command of a page, and the output that the page shows below it."""

    page: str
    command: str
    shown: str


def examples(page: str) -> Iterator[Example]:
    """The commands in the blocks of a page that show `$` before each command."""
    for block in re.findall(r"^```\n(\$ .*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = re.sub(r"\\\n\s*", "", part).partition("\n")
            yield Example(page, command, shown.strip("\n"))


def pattern(shown: str) -> str:
    """A regular expression for an output. A line `...` stands for any lines, and spaces for any number."""
    lines = []
    for line in shown.split("\n"):
        if line == "...":
            lines.append(r"(?:.*\n)*?")
            continue
        parts = re.split("|".join(f"({of})" for of in VARIABLE), line)
        found, variables = "", list(VARIABLE.values())
        for number, part in enumerate(parts):
            kind = number % (len(variables) + 1)
            if kind == 0:
                found += re.sub(r"(\\ )+", " +", re.escape(part))
            elif part is not None:
                found += variables[kind - 1]
        lines.append(found + r" *\n")
    return "".join(lines)


class Reader:
    """A person in a clone of the project who types what a page shows."""

    def __init__(self, clone: Path, stack: Stack) -> None:
        self.clone, self.stack = clone, stack
        # What the text around an example asks for, or what happened before it.
        self.before: dict[str, Callable[[], None]] = {
            "cxr doctor": self.empty_bucket,
            "cxr retry bad-files": self.run_bad_files,
            "cxr cancel third": self.start_third_run,
            "cxr delete third --yes": self.finish_third_run,
        }

    def type(self, command: str) -> str:
        """What a command prints, whether it fails or not. Output is as wide as it is in the pages."""
        path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.clone,
            env=os.environ | {"PATH": path, "COLUMNS": "118"},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.stdout

    def empty_bucket(self) -> None:
        s3 = client("s3")
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=self.stack.images_bucket):
            for found in page.get("Contents", []):
                s3.delete_object(Bucket=self.stack.images_bucket, Key=found["Key"])
        for run in re.findall(r"^([\w-]+) +[A-Z]+ ", self.type("cxr runs"), re.MULTILINE):
            self.type(f"cxr delete {run} --yes")

    def run_bad_files(self) -> None:
        """A complete run of one X-ray and two files that have no score."""
        bodies = {"a.png": b"", "b.png": b"no image", "c.png": (self.clone / XRAY).read_bytes()}
        for name, body in bodies.items():
            client("s3").put_object(Bucket=self.stack.images_bucket, Key=f"cxr-nih/bad/{name}", Body=body)
        self.type("cxr run bad-files --prefix cxr-nih/bad/ --watch")

    def start_third_run(self) -> None:
        """Start a run that waits: no job is delivered before it is cancelled."""
        self.enable_mapping(enabled=False)
        self.type("cxr run third --prefix cxr-nih/images_01/ --count 30")

    def finish_third_run(self) -> None:
        self.type("cxr run third --prefix cxr-nih/images_01/ --count 30 --watch")

    def enable_mapping(self, *, enabled: bool) -> None:
        functions = client("lambda")
        (mapping,) = functions.list_event_source_mappings()["EventSourceMappings"]
        functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=enabled)
        state = "Enabled" if enabled else "Disabled"
        wait_for(
            lambda: functions.get_event_source_mapping(UUID=mapping["UUID"])["State"] == state,
            f"{state} mapping",
        )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    if not shutil.which("npx") or not (ROOT / "node_modules").exists():
        pytest.skip("needs Node.js and `npm ci`")
    if not XRAYS.exists():
        pytest.skip(f"needs the X-rays of the examples in {XRAYS}")
    clone = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in [*tracked, ".venv", "node_modules"]:
        (clone / name).symlink_to(ROOT / name)
    (clone / IMAGES).parent.mkdir(parents=True)
    (clone / IMAGES).symlink_to(XRAYS)
    for name in ("images_01/images/" + XRAY, "index.csv"):
        shutil.copy(XRAYS / name, clone)
    with LocalAws() as aws:
        yield Reader(clone, Stack.of(aws.deploy()))


def typed(page: str) -> list[Example]:
    return [example for example in examples(page) if not example.command.startswith(tuple(NOT_TYPED))]


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md", "docs/results.md", "docs/settings.md"])
def test_a_page_shows_what_is_printed(reader: Reader, page: str) -> None:
    reader.empty_bucket()
    if page == "docs/results.md":
        reader.type(f"cxr upload {IMAGES} && cxr run first-40 --watch")
    wrong = []
    for example in typed(page):
        reader.before.get(example.command, lambda: None)()
        printed = reader.type(example.command)
        if example.command.startswith("cxr cancel"):
            reader.enable_mapping(enabled=True)
        if not re.fullmatch(pattern(example.shown), printed.rstrip("\n") + "\n"):
            wrong.append(f"{page} shows:\n$ {example.command}\n{example.shown}\n\nprinted:\n{printed}")
    assert not wrong, "\n\n".join(wrong)


def test_every_page_with_examples_is_typed() -> None:
    pages = [
        str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    ]
    marks = test_a_page_shows_what_is_printed.pytestmark  # type: ignore[attr-defined]
    (typed_pages,) = (mark.args[1] for mark in marks if mark.name == "parametrize")
    # docs/arrivals.md needs another stack, and a day: test_arrivals_local.py plays it.
    assert {page for page in pages if typed(page)} == {*typed_pages, "docs/arrivals.md"}


def test_the_pattern_of_an_output() -> None:
    shown = "✓ 40 images in 2 jobs\nscored     40  6.7 images/s, in 6.0 s\n...\nWrote x after 8 s."
    assert re.fullmatch(
        pattern(shown), "✓ 40 images in 2 jobs\nscored  40  12.1 images/s\nany\nWrote x after 11.5 s.\n"
    )
    assert not re.fullmatch(
        pattern(shown), "✓ 41 images in 2 jobs\nscored  40  12.1 images/s\nWrote x after 11 s.\n"
    )
