"""`make audit`: the rules of cdk-nag's HIPAA pack, and the known vulnerabilities of every pinned library.

Ends with 1 for a finding that docs/hipaa.md does not accept, for one that it accepts and that is there no
more, and for a vulnerability. Where the lists of vulnerabilities cannot be reached, it says so.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from aws_cdk import App
from cdk_nag import HIPAASecurityChecks
from constructs import IConstruct

from stacks.config import Config
from stacks.inference_stack import InferenceStack

PROJECT = Path(__file__).parents[1]
ACCEPTED = PROJECT / "docs" / "hipaa.md"
PINS = (
    "requirements.txt",
    "requirements-dev.txt",
    "training/requirements.txt",
    "benchmarks/requirements.txt",
)
ROW = re.compile(r"\| `(HIPAA\.Security-[^`]+)` \| `([^`]+)` \| [^| ][^|]* \|")

Finding = tuple[str, str]  # rule, path of the resource


def findings(scope: IConstruct) -> set[Finding]:
    """What the pack finds in a tree of constructs."""
    return {
        (violation.rule_name, resource.construct_path or "")
        for violation in HIPAASecurityChecks().validate_scope(scope).violations
        for resource in violation.violating_resources
    }


def accepted(page: str) -> list[Finding]:
    """The rows of a page's table, whose third column is the reason."""
    return [(row[1], row[2]) for line in page.splitlines() if (row := ROW.fullmatch(line))]


def complaints(found: set[Finding], rows: list[Finding]) -> list[str]:
    """A line for each difference, with what to do about it."""
    return [
        *(
            f"{rule} at {resource}: mend it, or add its row with the reason"
            for rule, resource in sorted(found - set(rows))
        ),
        *(
            f"{rule} at {resource}: found no more, remove its row"
            for rule, resource in sorted(set(rows) - found)
        ),
        *(
            f"{rule} at {resource}: {n} rows, keep one"
            for (rule, resource), n in Counter(rows).items()
            if n > 1
        ),
    ]


def vulnerable_python(pins: str) -> list[str] | None:
    """Package, version and name of each known vulnerability of a pinned file; None if nobody could be asked.

    pip-audit passes over a package of which its service knows nothing, and so over all without a network.
    """
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    asked = [*command, "--disable-pip", "--require-hashes", "--requirement", pins]
    done = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True)  # noqa: S603 - our own words
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return None
    if any("skip_reason" in package for package in packages):
        return None
    return [
        f"{package['name']} {package['version']}: {found['id']}, mended in {found['fix_versions'] or 'none'}"
        for package in packages
        for found in package["vulns"]
    ]


def vulnerable_npm() -> list[str] | None:
    """The same of the CDK's command line and what the report's page is made of."""
    command = ["npm", "audit", "--json"]  # npm is wherever Node.js is
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)  # noqa: S603
    try:
        found = json.loads(done.stdout)["vulnerabilities"]
    except (ValueError, KeyError):
        return None
    return [f"{name} {one['range']}: {one['severity']}" for name, one in found.items()]


def rules() -> list[str]:
    """What is wrong with the stack of the default settings by docs/hipaa.md; prints it if nothing is."""
    flags = json.loads((PROJECT / "cdk.json").read_text(encoding="utf-8"))["context"]
    with TemporaryDirectory() as folder:
        app = App(context=flags, outdir=folder)
        InferenceStack(app, "ChestXray", config=Config())
        found = findings(app)
    problems = complaints(found, accepted(ACCEPTED.read_text(encoding="utf-8")))
    if not problems:
        print(f"Rules of the HIPAA pack evaluated: {len(found)} findings, all accepted in docs/hipaa.md")
    return [f"docs/hipaa.md: {problem}" for problem in problems]


def libraries() -> list[str]:
    """The known vulnerabilities of all that is pinned; prints what was asked."""
    problems = []
    for pins in (*PINS, "package-lock.json"):
        found = vulnerable_python(pins) if pins.endswith(".txt") else vulnerable_npm()
        if found is None:
            print(f"{pins}: NOT CHECKED for known vulnerabilities, their list cannot be reached from here")
        elif not found:
            print(f"{pins}: no known vulnerability")
        problems += [f"{pins}: {problem}" for problem in found or ()]
    return problems


def main() -> int:
    """Audits rules and libraries. Returns the exit status."""
    problems = rules() + libraries()
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
