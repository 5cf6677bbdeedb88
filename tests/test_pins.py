"""Every library that is installed anywhere is pinned, with hashes, and is what the *.in files ask for."""

import os
import re
from pathlib import Path

import pytest
from support import ROOT

ASKED = [
    ROOT / folder / name
    for folder, name in (
        (".", "requirements-uv.in"),
        (".", "requirements.in"),
        (".", "requirements-dev.in"),
        ("containers/classifier", "requirements.in"),
        ("training", "requirements.in"),
        ("benchmarks", "requirements.in"),
    )
]


def pins(text: str) -> dict[str, set[str]]:
    """Name -> versions, which may differ by Python."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s;\\]+)", text, re.MULTILINE):
        found.setdefault(re.sub("[-_.]+", "-", name.lower()), set()).add(version)
    return found


@pytest.mark.parametrize("asked", ASKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_asked_for_is_what_is_pinned(asked: Path) -> None:
    pinned = pins(asked.with_suffix(".txt").read_text())
    wanted = pins(asked.read_text())
    assert wanted
    assert {name: pinned.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("asked", ASKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_pin_has_a_hash(asked: Path) -> None:
    lines = asked.with_suffix(".txt").read_text().splitlines()
    entries = [i for i, line in enumerate(lines) if re.match(r"[\w.-]+(\[[\w,]+\])?==", line)]
    assert entries
    assert all("--hash=sha256:" in lines[i + 1] for i in entries)


def test_the_image_and_the_command_line_have_the_same_versions() -> None:
    image = pins((ROOT / "containers" / "classifier" / "requirements.txt").read_text())
    here = pins((ROOT / "requirements.txt").read_text())
    assert {name: here[name] for name in image} == image


def test_the_workflow_for_forks_runs_what_ci_runs() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"&& (\S+)'$", workflow, re.MULTILINE) == [".ci/run"]
    actions = re.findall(r"uses: \S+?@(\S+)", workflow)
    assert actions
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in actions)


@pytest.mark.xdist_group("pins")
def test_groups_of_tests_stay_together(request: pytest.FixtureRequest) -> None:
    """pytest-xdist names a test's group at the end of its id. With a pytest it does not know, it cannot."""
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        pytest.skip("needs pytest-xdist's processes, which `make test` starts")
    assert request.node.nodeid.endswith("@pins")
