"""`make audit`: check the stack by other checkers, and all pinned libraries for known vulnerabilities.

The exit status is 1 if the documentation does not accept a finding or accepts one that no longer exists, or
if a library has a known vulnerability. The audit says what it could not check: checkov is not among the
libraries, and the lists of vulnerabilities need a network.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from aws_cdk import App, Stage
from cdk_nag import HIPAASecurityChecks
from cfnlint.api import lint
from constructs import IConstruct

from stacks.config import Config
from stacks.inference_stack import InferenceStack

PROJECT = Path(__file__).parents[1]
HIPAA, OTHERS = PROJECT / "docs" / "hipaa.md", PROJECT / "docs" / "findings.md"
PINS = (
    "requirements-uv.txt",
    "requirements.txt",
    "requirements-dev.txt",
    "training/requirements.txt",
    "benchmarks/requirements.txt",
)
ROW = re.compile(r"\| `([^`]+)` \| `([^`]+)` \| [^| ][^|]* \|")

# The stacks that are checked: by default, and with each setting that adds, removes or replaces resources.
KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
STACKS: tuple[Mapping[str, str], ...] = (
    {},
    {"kmsKey": KEY},
    {"imagesBucket": "hospital", "imagesKmsKey": KEY, "prefix": "chest/"},
    {"alarmTopic": "arn:aws:sns:eu-west-1:111122223333:on-call"},
    {"data": "destroy"},
    {"network": "isolated"},
    {"arrivals": "on"},
)

# Checker -> the page that accepts its findings, and what the names of its rules begin with.
CHECKERS = {
    "HIPAA pack": (HIPAA, "HIPAA.Security-"),
    "cfn-lint": (OTHERS, "W"),
    "checkov": (OTHERS, "CKV"),
}
ANYWHERE = "any resource"  # of a rule that is accepted wherever it is broken

Finding = tuple[str, str]  # rule, and the resource by its path or its logical id


@contextmanager
def stacks() -> Iterator[Sequence[InferenceStack]]:
    """The STACKS, not synthesized yet."""
    flags = json.loads((PROJECT / "cdk.json").read_text(encoding="utf-8"))["context"]
    with TemporaryDirectory() as folder:
        yield [
            InferenceStack(
                # Every `cdk synth` checks the CDK's own rules, which takes seconds.
                App(context=flags, outdir=f"{folder}/{number}", builtin_cloud_formation_validation=False),
                "ChestXray",
                config=Config.from_context(settings),
            )
            for number, settings in enumerate(STACKS)
        ]


def findings(scope: IConstruct) -> set[Finding]:
    """The findings of the HIPAA pack in a tree of constructs."""
    return {
        (violation.rule_name, resource.construct_path or "")
        for violation in HIPAASecurityChecks().validate_scope(scope).violations
        for resource in violation.violating_resources
    }


def lint_findings(template: str) -> set[Finding]:
    """The findings of cfn-lint in a template."""
    return {(match.rule.id, ANYWHERE) for match in lint(template)}


def checkov_findings(templates: Sequence[Path]) -> set[Finding] | None:
    """The findings of checkov in templates, or None if it is not installed. It needs no network."""
    checkov = shutil.which("checkov")
    if not checkov:
        return None
    files = [argument for template in templates for argument in ("--file", str(template))]
    options = ["--framework", "cloudformation", "--skip-download", "--output", "json", "--quiet", "--compact"]
    done = subprocess.run([checkov, *options, *files], capture_output=True, text=True)  # noqa: S603
    return {
        (failed["check_id"], failed["resource"].rpartition(".")[2])
        for failed in json.loads(done.stdout)["results"]["failed_checks"]
    }


@cache
def found() -> dict[str, set[Finding] | None]:
    """What each checker finds in all of STACKS together. None: it is not installed."""
    hipaa: set[Finding] = set()
    linted: set[Finding] = set()
    templates = []
    with stacks() as built:
        for stack in built:
            hipaa |= findings(stack)
            assembly = cast(Stage, App.of(stack)).synth()
            template = Path(assembly.get_stack_by_name("ChestXray").template_full_path)
            linted |= lint_findings(template.read_text(encoding="utf-8"))
            templates.append(template)
        return {"HIPAA pack": hipaa, "cfn-lint": linted, "checkov": checkov_findings(templates)}


def acknowledged() -> list[tuple[str, str, str]]:
    """What the code accepts of the AwsSolutions pack in any of STACKS: finding, resource, reason."""
    rows: dict[tuple[str, str, str], None] = {}
    with stacks() as built:
        for stack in built:
            for construct in stack.node.find_all():
                for entry in construct.node.metadata:
                    if entry.type == "aws:cdk:acknowledged-rules":
                        for rule, reason in entry.data.items():
                            kind, _, name = rule.partition("::")
                            if kind == "Annotation" and name.startswith("AwsSolutions-"):
                                rows[name, construct.node.path, reason] = None
    return sorted(rows)


def accepted(page: str, prefix: str) -> list[Finding]:
    """The findings in a page's tables that have a reason in the third column, of rules with a prefix."""
    rows = (ROW.fullmatch(line) for line in page.splitlines())
    return [(row[1], row[2]) for row in rows if row and row[1].startswith(prefix)]


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
    """Where the pages and what the checkers find differ. Prints a line for each checker if they do not."""
    problems = []
    for checker, (page, prefix) in CHECKERS.items():
        here, name = found()[checker], page.relative_to(PROJECT)
        if here is None:
            print(f"{checker}: NOT CHECKED: not installed")
            continue
        differences = complaints(here, accepted(page.read_text(encoding="utf-8"), prefix))
        if not differences:
            print(f"{checker}: {len(here)} findings, all accepted in {name}")
        problems += [f"{name}: {difference}" for difference in differences]
    return problems


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
