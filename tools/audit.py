"""`make audit`: check the stack by other checkers, and all pinned libraries for known vulnerabilities.

The exit status is 1 if the documentation does not accept a finding or accepts one that no longer exists, or if
a library has a known vulnerability. Without access to the lists of vulnerabilities, the audit says so.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from aws_cdk import App
from cdk_nag import HIPAASecurityChecks
from cfnlint.api import lint
from constructs import IConstruct

from stacks.config import Config
from stacks.inference_stack import InferenceStack

PROJECT = Path(__file__).parents[1]
ACCEPTED = PROJECT / "docs" / "hipaa.md"
BY_RULE = PROJECT / "docs" / "findings.md"
PINS = (
    "requirements.txt",
    "requirements-dev.txt",
    "training/requirements.txt",
    "benchmarks/requirements.txt",
)
ROW = re.compile(r"\| `(HIPAA\.Security-[^`]+)` \| `([^`]+)` \| [^| ][^|]* \|")
RULE_ROW = r"^\| `(%s\w+)` \| [^| ][^|]* \|$"

# The stacks that are audited: by default, and with each setting that adds, removes or replaces resources.
KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
STACKS: tuple[Mapping[str, str], ...] = (
    {},
    {"kmsKey": KEY},
    {"imagesBucket": "hospital", "imagesKmsKey": KEY, "prefix": "chest/"},
    {"data": "destroy"},
    {"alarmTopic": "arn:aws:sns:eu-west-1:111122223333:on-call"},
    {"network": "isolated"},
)

Finding = tuple[str, str]  # rule, path of the resource


def findings(scope: IConstruct) -> set[Finding]:
    """The findings of the HIPAA pack in a tree of constructs."""
    return {
        (violation.rule_name, resource.construct_path or "")
        for violation in HIPAASecurityChecks().validate_scope(scope).violations
        for resource in violation.violating_resources
    }


def accepted(page: str) -> list[Finding]:
    """The findings in a page's table that have a reason in the third column."""
    return [(row[1], row[2]) for line in page.splitlines() if (row := ROW.fullmatch(line))]


def complaints(found: set[Finding], rows: list[Finding]) -> list[str]:
    """A line for each difference, with what to do about it."""
    return [
        *(
            f"{rule} at {resource}: fix it, or add a row with the reason"
            for rule, resource in sorted(found - set(rows))
        ),
        *(
            f"{rule} at {resource}: no longer found, remove its row"
            for rule, resource in sorted(set(rows) - found)
        ),
        *(
            f"{rule} at {resource}: {n} rows, keep one"
            for (rule, resource), n in Counter(rows).items()
            if n > 1
        ),
    ]


def vulnerable_python(pins: str) -> list[str] | None:
    """The known vulnerabilities of the packages in a file of pins, or None without access to their list.

    pip-audit skips a package that its service does not know. Without a network, it skips all packages.
    """
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    options = ["--disable-pip", "--require-hashes", "--requirement", pins]
    done = subprocess.run([*command, *options], cwd=PROJECT, capture_output=True, text=True)  # noqa: S603
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return None
    if any("skip_reason" in package for package in packages):
        return None
    return [
        f"{package['name']} {package['version']}: {found['id']}, "
        f"fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for package in packages
        for found in package["vulns"]
    ]


def vulnerable_npm() -> list[str] | None:
    """The known vulnerabilities of the npm packages (the CDK's command line and parts of the report page)."""
    command = ["npm", "audit", "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)  # noqa: S603
    try:
        found = json.loads(done.stdout)["vulnerabilities"]
    except (ValueError, KeyError):
        return None
    return [f"{name} {one['range']}: {one['severity']}" for name, one in found.items()]


def rules() -> list[str]:
    """Where docs/hipaa.md and the stack of the default settings differ. Prints a line if they do not."""
    flags = json.loads((PROJECT / "cdk.json").read_text(encoding="utf-8"))["context"]
    with TemporaryDirectory() as folder:
        app = App(context=flags, outdir=folder)
        InferenceStack(app, "ChestXray", config=Config())
        found = findings(app)
    problems = complaints(found, accepted(ACCEPTED.read_text(encoding="utf-8")))
    if not problems:
        print(f"HIPAA pack: {len(found)} findings, all accepted in docs/hipaa.md")
    return [f"docs/hipaa.md: {problem}" for problem in problems]


def libraries() -> list[str]:
    """The known vulnerabilities of all pinned packages. Prints a line for each file without any."""
    problems = []
    for pins in (*PINS, "package-lock.json"):
        found = vulnerable_python(pins) if pins.endswith(".txt") else vulnerable_npm()
        if found is None:
            print(f"{pins}: NOT CHECKED for known vulnerabilities: no access to their list")
        elif not found:
            print(f"{pins}: no known vulnerability")
        problems += [f"{pins}: {problem}" for problem in found or ()]
    return problems


def main() -> int:
    """Audit rules and libraries. Returns the exit status."""
    problems = rules() + libraries()
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
