"""Monitoring: the lines that CloudWatch takes metrics from, the alarms with their runbook, the dashboard."""

import json
import re
from typing import Any

import pytest
import test_classifier
import test_job_creator
from support import PREFIX, ROOT, image_bytes
from support import kinesis_event as event
from synth import synth
from test_classifier import Brightness, job, key, plenty

from cxr.planning import capacity

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
TOPIC = "arn:aws:sns:us-east-1:111122223333:ops"
# The units that the functions use. CloudWatch refuses units that its specification does not name.
UNITS = {"Count", "Milliseconds"}
BY_CLASSIFIER = {"ImagesScored", "ImagesFailed", "JobsDone", "JobsReturned", "MillisecondsPerImage"}
BY_JOB_CREATOR = {"ImagesSent", "JobsSent", "JobsResent"}
BY_ANNOUNCER = {"EventsTaken", "EventsDropped", "EventsReturned", "ImagesSent"}
BY_RECONCILER = {"ArrivalsMissed", "ArrivalsSentAgain"}
ON = "arrivals=on"


def alarms(*settings: str) -> dict[str, dict[str, Any]]:
    """Name -> properties of every alarm."""
    return {
        re.sub("^Monitoring|[0-9A-F]{8}$", "", logical_id): resource["Properties"]
        for logical_id, resource in synth(*settings).template.find_resources("AWS::CloudWatch::Alarm").items()
    }


def dashboard(*settings: str) -> list[dict[str, Any]]:
    """The widgets of the dashboard, with text for intrinsic functions."""
    (resource,) = synth(*settings).template.find_resources("AWS::CloudWatch::Dashboard").values()
    parts = resource["Properties"]["DashboardBody"]["Fn::Join"][1]
    return list(
        json.loads("".join(part if isinstance(part, str) else _named(part) for part in parts))["widgets"]
    )


def _named(reference: dict[str, Any]) -> str:
    (value,) = reference.values()
    return value if isinstance(value, str) else ".".join(value)


def metrics(line: str) -> dict[str, float]:
    """The metrics that CloudWatch takes from a line of a log: name -> value.

    Fails for a line that breaks a rule of CloudWatch_Embedded_Metric_Format_Specification. CloudWatch would
    ignore it.
    """
    record = json.loads(line)
    assert set(record["_aws"]) == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(record["_aws"]["Timestamp"], int)
    assert record["_aws"]["Timestamp"] > 1_700_000_000_000  # milliseconds
    (directive,) = record["_aws"]["CloudWatchMetrics"]
    assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
    assert directive["Namespace"] == "chest-xray-inference"
    assert directive["Dimensions"] == [["FunctionName"]]
    assert isinstance(record["FunctionName"], str)
    assert 1 <= len(directive["Metrics"]) <= 100
    for metric in directive["Metrics"]:
        assert set(metric) == {"Name", "Unit"}
        assert metric["Unit"] in UNITS
        assert isinstance(record[metric["Name"]], int | float)
    return {metric["Name"]: record[metric["Name"]] for metric in directive["Metrics"]}


class TestLines:
    @pytest.mark.usefixtures("aws")
    def test_a_batch_of_the_classifier(self, capsys: pytest.CaptureFixture[str]) -> None:
        classifier = test_classifier.make(Brightness())
        test_classifier.start("r")
        test_classifier.start("elsewhere", sha256="ee" * 32)
        good, empty = test_classifier.put(a=image_bytes(), b=b"")
        classifier(event(job(good, empty), job(good, run_id="elsewhere"), b"no job"), plenty)
        line = capsys.readouterr().out
        found = metrics(line)
        assert found.keys() == BY_CLASSIFIER
        assert found.pop("MillisecondsPerImage") >= 0
        assert found == {"ImagesScored": 1, "ImagesFailed": 1, "JobsDone": 1, "JobsReturned": 2}
        record = json.loads(line)
        assert (record["level"], record["runs"]) == ("INFO", ["elsewhere", "r"])
        assert list(record["failures"]) == ["2", "1"]

    @pytest.mark.usefixtures("aws")
    def test_without_images_there_is_no_time_per_image(self, capsys: pytest.CaptureFixture[str]) -> None:
        test_classifier.start("r", state="CANCELLED")
        test_classifier.make(Brightness())(event(job(key("a"))), plenty)
        assert metrics(capsys.readouterr().out) == {
            "ImagesScored": 0,
            "ImagesFailed": 0,
            "JobsDone": 1,
            "JobsReturned": 0,
        }

    @pytest.mark.usefixtures("aws")
    def test_direct_jobs(self, capsys: pytest.CaptureFixture[str]) -> None:
        test_classifier.put(a=image_bytes())
        test_classifier.make(Brightness())({"Jobs": [{"RunId": "d", "Key": key("a")}]}, plenty)
        assert metrics(capsys.readouterr().out)["ImagesScored"] == 1

    @pytest.mark.usefixtures("aws")
    def test_the_job_creator(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = test_job_creator.throttle(monkeypatch, every=3)
        test_job_creator.put_index(*(f"{number}.png" for number in range(100)))
        index = f"{PREFIX}index.csv"
        test_job_creator.create({"RunId": "r", "IndexKey": index}, images_per_job=2)
        line = capsys.readouterr().out
        assert metrics(line) == {"ImagesSent": 100, "JobsSent": 50, "JobsResent": len(refused)}
        assert metrics(line).keys() == BY_JOB_CREATOR
        assert (json.loads(line)["run"], json.loads(line)["continued"]) == ("r", False)

    def test_alarms_and_dashboard_use_the_metrics_that_functions_print(self) -> None:
        """A metric with a wrong name has no data, so its alarm would never go off."""
        watched = set(
            re.findall(r'"chest-xray-inference","(\w+)"', json.dumps(dashboard(ON), separators=(",", ":")))
        )
        watched |= {a["MetricName"] for a in alarms(ON).values() if a["Namespace"] == "chest-xray-inference"}
        assert watched == BY_CLASSIFIER | BY_JOB_CREATOR | BY_RECONCILER | BY_ANNOUNCER - {"EventsReturned"}


class TestAlarms:
    def test_each_alarm_names_its_heading_in_the_runbook(self) -> None:
        for name, alarm in alarms(ON).items():
            assert alarm["AlarmDescription"].endswith(f". What to do: docs/runbook.md, {name}.")
            section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
            assert section, f"docs/runbook.md has no heading ### {name}"
            for part in ("**Means**", "**Look**", "**Do**"):
                assert part in section[1], f"{name}: {part}"

    def test_the_runbook_has_no_other_alarms(self) -> None:
        (chapter,) = re.findall(r"^## Alarms\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
        assert set(re.findall(r"^### (\w+)$", chapter, re.MULTILINE)) == set(alarms(ON))

    def test_no_alarm_goes_off_without_a_run(self) -> None:
        """Without a run there are no data, except that Lambda reads the stream."""
        missing = {name: alarm["TreatMissingData"] for name, alarm in alarms(ON).items()}
        assert missing.pop("JobsNotRead") == "breaching"
        assert set(missing.values()) == {"notBreaching"}

    def test_metric_threshold_and_minutes_of_each_alarm(self) -> None:
        found = {
            name: (
                f"{alarm['Namespace']} {alarm['MetricName']} {alarm['Statistic']}",
                f"{'<' if alarm['ComparisonOperator'] == 'LessThanThreshold' else '>='} {alarm['Threshold']}",
                alarm["Period"] * alarm["EvaluationPeriods"] // 60,
            )
            for name, alarm in alarms(ON).items()
        }
        assert found == {
            "ArrivalsWait": ("AWS/SQS ApproximateAgeOfOldestMessage Maximum", ">= 900", 5),
            "ArrivalsNotTaken": ("AWS/SQS ApproximateNumberOfMessagesVisible Maximum", ">= 1", 5),
            "ArrivalsMissed": ("chest-xray-inference ArrivalsMissed Sum", ">= 1", 5),
            "ReconcilerErrors": ("AWS/Lambda Errors Sum", ">= 1", 5),
            "JobsWaitTooLong": ("AWS/Lambda IteratorAge Maximum", f">= {6 * 3_600_000}", 5),
            "RunStalls": ("chest-xray-inference JobsDone Sum", "< 1", 15),
            "JobsNotRead": ("AWS/Kinesis GetRecords.Success Sum", "< 1", 15),
            "JobsGivenUp": ("AWS/Lambda OnFailureDestinationDeliveredEventCount Sum", ">= 1", 5),
            "JobsDropped": ("AWS/Lambda DroppedEventCount Sum", ">= 1", 5),
            "FailureBucketNotEmpty": ("AWS/S3 NumberOfObjects Maximum", ">= 1", 24 * 60),
            "ClassifierErrors": ("AWS/Lambda Errors Sum", ">= 1", 5),
            "ClassifierTimeouts": ("AWS/Lambda Duration Maximum", ">= 119000", 5),
            "ClassifierThrottles": ("AWS/Lambda Throttles Sum", ">= 1", 15),
            "JobCreatorErrors": ("AWS/Lambda Errors Sum", ">= 1", 5),
            "JobCreatorThrottles": ("AWS/Lambda Throttles Sum", ">= 1", 5),
        }

    def test_thresholds_follow_the_settings(self) -> None:
        found = alarms("recordAge=2", "timeout=60", "batchSize=2")
        assert found["JobsWaitTooLong"]["Threshold"] == 3_600_000
        assert found["ClassifierTimeouts"]["Threshold"] == 59_000

    def test_each_alarm_watches_its_own_resource(self) -> None:
        for name, alarm in alarms(ON).items():
            (dimension, *_) = alarm["Dimensions"]
            owner = {"ClassifierMapping": "JobsGivenUp JobsDropped", "JobsStream": "JobsNotRead"}
            owner |= {
                "JobsFailures": "FailureBucketNotEmpty",
                "JobCreator": "JobCreatorErrors JobCreatorThrottles",
                "ArrivalsQueue": "ArrivalsWait",
                "ArrivalsDeadLetters": "ArrivalsNotTaken",
                "ArrivalsReconciler": "ArrivalsMissed ReconcilerErrors",
            }
            (expected,) = [o for o, names in owner.items() if name in names.split()] or ["ClassifierFunction"]
            value = dimension["Value"]
            (owned, *_) = [value["Ref"]] if "Ref" in value else value["Fn::GetAtt"]
            assert owned.startswith(expected), name

    def test_the_mapping_counts_jobs_out_of_retries(self) -> None:
        synth().template.has_resource_properties(
            "AWS::Lambda::EventSourceMapping", {"MetricsConfig": {"Metrics": ["EventCount"]}}
        )

    def test_all_alarms_notify_the_topic(self) -> None:
        assert all("AlarmActions" not in alarm for alarm in alarms().values())
        for alarm in alarms(f"alarmTopic={TOPIC}", ON).values():
            assert (alarm["AlarmActions"], alarm["OKActions"]) == ([TOPIC], [TOPIC])


class TestCost:
    """`cxr plan` counts alarms and metrics, without loading the CDK."""

    def test_alarms_and_their_dashboard(self) -> None:
        assert len(alarms()) == capacity.ALARMS
        assert len(alarms(ON)) == capacity.ALARMS + capacity.ARRIVAL_ALARMS
        synth().template.resource_count_is("AWS::CloudWatch::Dashboard", 1)

    def test_metrics(self) -> None:
        assert len(BY_CLASSIFIER | BY_JOB_CREATOR) == capacity.METRICS


class TestFunctions:
    @pytest.mark.parametrize(
        "function",
        ["ClassifierFunction", "JobCreatorFunction", "ArrivalsAnnouncer", "ArrivalsReconciler"],
    )
    def test_logs_are_json_at_info_and_traces_are_on(self, function: str) -> None:
        (properties,) = [
            resource["Properties"]
            for name, resource in synth(ON).template.find_resources("AWS::Lambda::Function").items()
            if name.startswith(function)
        ]
        logging = {name: value for name, value in properties["LoggingConfig"].items() if name != "LogGroup"}
        # At WARN, Lambda would drop the line with the metrics, because its level is INFO.
        assert logging == {"LogFormat": "JSON", "ApplicationLogLevel": "INFO", "SystemLogLevel": "INFO"}
        assert properties["TracingConfig"] == {"Mode": "Active"}


class TestDashboard:
    def test_the_alarms_come_first(self) -> None:
        text, status = dashboard()[:2]
        assert (text["type"], status["type"]) == ("text", "alarm")
        assert "docs/runbook.md" in text["properties"]["markdown"]
        assert len(status["properties"]["alarms"]) == len(alarms())

    def test_graphs(self) -> None:
        titles = [widget["properties"]["title"] for widget in dashboard()[2:]]
        assert titles == [
            "Images a second",
            "Jobs",
            "Oldest job, milliseconds",
            "Classifiers at once",
            "Errors",
            "Throttles",
            "An invocation, milliseconds",
            "An image, milliseconds",
            "Jobs out of retries, objects in the failure bucket",
            "Table, write units a second",
            "Table, throttled requests",
            "Stream, throttled writes and reads",
        ]

    def test_lines_follow_the_settings(self) -> None:
        lines = {
            line["label"]: line["value"]
            for widget in dashboard()
            for line in widget["properties"].get("annotations", {}).get("horizontal", [])
        }
        hour = 3_600_000
        assert lines == {"alarm": 6 * hour, "failure bucket": 12 * hour, "lanes": 10, "timeout": 120_000}
