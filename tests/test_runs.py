"""What a run has come to, as the operator reads it from what the classifier wrote."""

import base64
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

import boto3
import pytest
from classifier.predictions import Prediction, pack
from classifier.table import Table
from support import BUCKET, TABLE

from cxr.runs import Outcome, images_in_failure_bucket, outcomes, run_status, write_csv

SCORED = Outcome("a.png", {"abnormal": Decimal("0.5"), "mass": Decimal("0.25")}, frozenset({"abnormal"}), "")
FAILED = Outcome("b.png", {}, frozenset(), "IMAGE_EMPTY")


def test_a_run_as_the_classifier_leaves_it(aws: None) -> None:
    dynamodb = boto3.client("dynamodb")
    run = {"pk": "RUN", "sk": "first", "state": "SCORING", "model": "demo:1.0.0", "expected": 200}
    dynamodb.put_item(TableName=TABLE, Item=pack(run))
    scores = {"abnormal": Decimal("0.75")}
    scored = [Prediction(f"{number:03}.png", scores, ("abnormal",)) for number in range(98)]
    failed = Prediction("empty.png", error="IMAGE_EMPTY")
    table = Table(TABLE, dynamodb, "demo:1.0.0", "ab" * 32)
    table.write("first", [*scored, failed], {})

    status = run_status(dynamodb, TABLE, "first")
    assert (status.state, status.model, status.expected) == ("SCORING", "demo:1.0.0", 200)
    assert (status.done, status.complete) == (99, False)
    assert status.failures == Counter({"IMAGE_EMPTY": 1})

    found = outcomes(dynamodb, TABLE, "first")
    assert [outcome.key for outcome in found] == [*(f"{number:03}.png" for number in range(98)), "empty.png"]
    assert found[0] == Outcome("000.png", scores, frozenset({"abnormal"}), "")
    assert found[-1] == Outcome("empty.png", {}, frozenset(), "IMAGE_EMPTY")


def test_a_run_that_is_not_there(aws: None) -> None:
    with pytest.raises(LookupError, match="no run first"):
        run_status(boto3.client("dynamodb"), TABLE, "first")


def test_images_of_a_run_in_the_failure_bucket_are_counted(aws: None) -> None:
    s3 = boto3.client("s3")
    assert images_in_failure_bucket(s3, BUCKET, "first") == 0
    jobs = [{"RunId": "first", "Keys": ["a", "b"]}, {"RunId": "other", "Keys": ["c"]}]
    records = [{"kinesis": {"data": base64.b64encode(json.dumps(job).encode()).decode()}} for job in jobs]
    for name in ("one", "two"):
        document = {"payload": json.dumps({"Records": records})}
        s3.put_object(Bucket=BUCKET, Key=f"aws/lambda/{name}", Body=json.dumps(document))
    assert images_in_failure_bucket(s3, BUCKET, "first") == 4


@pytest.mark.parametrize(
    ("primary", "positive", "label"),
    [
        ("abnormal", {"abnormal"}, "abnormal"),
        ("abnormal", set(), "normal"),
        ("mass", {"mass"}, "mass"),
        ("mass", {"abnormal"}, "no mass"),
    ],
)
def test_an_image_is_labelled_by_the_primary_label(primary: str, positive: set[str], label: str) -> None:
    assert Outcome("a.png", {primary: Decimal(1)}, frozenset(positive), "").label(primary) == label


def test_a_csv_of_one_label(tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", [SCORED, FAILED], ["abnormal"])
    assert (tmp_path / "results.csv").read_text() == (
        "key,status,score,label,error\na.png,SCORED,0.500000,abnormal,\nb.png,FAILED,,,IMAGE_EMPTY\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_a_csv_of_several_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", [SCORED, FAILED], ["mass", "abnormal"])
    assert (tmp_path / "results.csv").read_text() == (
        "key,status,score,label,error,score_mass,score_abnormal\n"
        "a.png,SCORED,0.250000,no mass,,0.250000,0.500000\n"
        "b.png,FAILED,,,IMAGE_EMPTY,,\n"
    )
