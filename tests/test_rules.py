"""Security checkers: a finding of AwsSolutions stops synth, docs/ accept those of the others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App
from aws_cdk.aws_s3 import Bucket
from cdk_nag import AwsSolutionsChecks
from support import ROOT

from stacks.config import Config
from stacks.inference_stack import InferenceStack
from tools import audit

KEY = audit.KEY
EXISTING_BUCKET = {"imagesBucket": "hospital", "imagesKmsKey": KEY, "prefix": "chest/"}

# Without credentials and endpoints, no deployment of these tests reaches AWS.
NO_AWS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "PYTHONPATH": str(ROOT),
}

# Runs app.py with one more bucket, which has none of the properties that the rules ask for.
CARELESS = """
import runpy
from aws_cdk.aws_s3 import Bucket
from stacks import inference_stack

class Careless(inference_stack.InferenceStack):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Bucket(self, "Careless")

inference_stack.InferenceStack = Careless
runpy.run_path("app.py")
"""


def stack(folder: Path, **settings: str) -> InferenceStack:
    flags = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = App(context=flags, outdir=str(folder))
    return InferenceStack(app, "ChestXray", config=Config.from_context(settings))


@pytest.mark.parametrize(
    "settings",
    [
        *audit.STACKS,
        {"kmsKey": KEY, "prefix": "a/b/"},
        EXISTING_BUCKET | {"kmsKey": KEY},
        EXISTING_BUCKET | {"kmsKey": KEY, "network": "isolated"},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_aws_solutions_finds_nothing(tmp_path: Path, settings: dict[str, str]) -> None:
    violations = AwsSolutionsChecks().validate_scope(stack(tmp_path, **settings)).violations
    assert [violation.rule_name for violation in violations] == []


@pytest.mark.slow
def test_a_finding_stops_a_deployment(tmp_path: Path) -> None:
    """The CDK synthesizes first, and stops there."""
    npx = shutil.which("npx")
    if not npx or not (ROOT / "node_modules").exists():
        pytest.skip("needs Node.js and `npm ci`")
    app = tmp_path / "careless.py"
    app.write_text(CARELESS)
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | NO_AWS
    cdk = subprocess.run(
        [npx, "cdk", "deploy", "--app", f"{sys.executable} {app}", "--output", str(tmp_path / "cdk.out")],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert cdk.returncode == 1
    finding = next(part for part in cdk.stderr.split("\n\n") if "AwsSolutions-S1'" in part)
    assert "The S3 Bucket has server access logs disabled." in finding
    assert "ChestXray/Careless/Resource" in finding
    assert "Traceback" not in cdk.stderr


def test_the_audit_fails_for_a_finding_without_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what the pages accept, and one finding more. `make audit` asks the checkers themselves."""
    accepted = audit.accepted(audit.HIPAA.read_text(), "HIPAA")
    found = {
        "HIPAA pack": {*accepted, ("HIPAA.Security-New", "ChestXray/A")},
        "cfn-lint": {("W3005", audit.ANYWHERE)},
        "checkov": None,
    }
    monkeypatch.setattr(audit, "found", lambda: found)
    assert audit.rules() == [
        "docs/hipaa.md: HIPAA.Security-New at ChestXray/A: fix it, or add a row with the reason"
    ]
    found["HIPAA pack"] = set(accepted)
    capsys.readouterr()
    assert audit.rules() == []
    assert capsys.readouterr().out.splitlines() == [
        f"HIPAA pack: {len(accepted)} findings, all accepted in docs/hipaa.md",
        "cfn-lint: 1 findings, all accepted in docs/findings.md",
        "checkov: NOT CHECKED: not installed",
    ]


def test_checkov_is_asked_if_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the form of its answer, because it is not among the libraries."""
    failed = {"check_id": "CKV_AWS_18", "resource": "AWS::S3::Bucket.Logs"}
    answer = {"results": {"failed_checks": [failed]}}
    checkov = tmp_path / "checkov"
    checkov.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    checkov.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert audit.checkov_findings([tmp_path / "template.json"]) == {("CKV_AWS_18", "Logs")}
    checkov.unlink()
    assert audit.checkov_findings([]) is None


OLD_PILLOW = {"id": "PYSEC-2023-175", "fix_versions": ["10.0.1"], "aliases": [], "description": ""}
UNKNOWN = {"name": "pillow", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("pip", "npm", "status", "line"),
    [
        ({"dependencies": []}, {"vulnerabilities": {}}, 0, "requirements.txt: no known vulnerability"),
        ({"dependencies": [UNKNOWN]}, {"error": {}}, 0, "package-lock.json: NOT CHECKED"),
        (None, None, 0, "requirements.txt: NOT CHECKED"),
        (
            {"dependencies": [{"name": "pillow", "version": "9.0.0", "vulns": [OLD_PILLOW]}]},
            {"vulnerabilities": {}},
            1,
            "training/requirements.txt: pillow 9.0.0: PYSEC-2023-175, fixed in 10.0.1",
        ),
        (
            {"dependencies": []},
            {"vulnerabilities": {"d3": {"range": "<7", "severity": "high"}}},
            1,
            "package-lock.json: d3 <7: high",
        ),
    ],
)
def test_the_audit_fails_for_a_known_vulnerability_and_says_what_it_did_not_check(
    pip: Any, npm: Any, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With the documented answers of pip-audit and npm, because both need the internet."""

    def answer_of(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        answer = npm if command[0] == "npm" else pip
        return subprocess.CompletedProcess(command, 1, "" if answer is None else json.dumps(answer))

    monkeypatch.setattr(subprocess, "run", answer_of)
    monkeypatch.setattr(audit, "rules", list)
    assert audit.main() == status
    printed = capsys.readouterr()
    assert line in printed.out + printed.err


def test_each_difference_has_a_line() -> None:
    new, kept, fixed = ("rule", "new"), ("rule", "kept"), ("rule", "fixed")
    assert audit.complaints({new, kept}, [kept, fixed, kept]) == [
        "rule at new: fix it, or add a row with the reason",
        "rule at fixed: no longer found, remove its row",
        "rule at kept: 2 rows, keep one",
    ]
    assert audit.complaints({kept}, [kept]) == []


def test_a_row_without_a_reason_accepts_nothing() -> None:
    row = "| `HIPAA.Security-LambdaDLQ` | `ChestXray/A` | {} |"
    accepted = [("HIPAA.Security-LambdaDLQ", "ChestXray/A")]
    assert audit.accepted(row.format("It is so."), "HIPAA") == accepted
    assert audit.accepted(row.format("It is so."), "CKV") == []
    assert audit.accepted(row.format(" "), "HIPAA") == []


def test_a_careless_bucket_has_findings(tmp_path: Path) -> None:
    careless = stack(tmp_path)
    before = audit.findings(careless)
    Bucket(careless, "Careless")
    new = audit.findings(careless) - before
    assert ("HIPAA.Security-S3BucketLoggingEnabled", "ChestXray/Careless/Resource") in new
    assert {resource for _rule, resource in new} == {"ChestXray/Careless/Resource"}


def test_your_own_key_removes_the_findings_on_encryption(tmp_path: Path) -> None:
    without = audit.findings(stack(tmp_path / "without"))
    with_key = audit.findings(stack(tmp_path / "with", kmsKey=KEY))
    assert with_key < without
    assert without - with_key == {
        ("HIPAA.Security-CloudWatchLogGroupEncrypted", "ChestXray/Classifier/Role/Logs/Resource"),
        ("HIPAA.Security-CloudWatchLogGroupEncrypted", "ChestXray/JobCreator/Role/Logs/Resource"),
        ("HIPAA.Security-S3DefaultEncryptionKMS", "ChestXray/Jobs/Failures/Resource"),
        ("HIPAA.Security-S3DefaultEncryptionKMS", "ChestXray/Storage/Images/Resource"),
    }
