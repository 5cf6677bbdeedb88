"""The one line that a function prints for each invocation: a record to search, and the metrics in it."""

import json
import logging
import os
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

NAMESPACE = "chest-xray-inference"


def print_line(metrics: Mapping[str, int], units: Mapping[str, str] | None = None, **fields: Any) -> None:
    """Print metrics and fields as one line. `units` names the unit of metrics that are no Count.

    The form is the embedded metric format (CloudWatch user guide,
    CloudWatch_Embedded_Metric_Format_Specification): CloudWatch makes metrics of the line. A run may be a
    field, but no dimension: every run would then be a metric of its own, which costs money.
    """
    now = datetime.now(UTC)
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [["FunctionName"]],
        "Metrics": [{"Name": name, "Unit": (units or {}).get(name, "Count")} for name in metrics],
    }
    record = {
        "timestamp": now.isoformat(timespec="milliseconds"),
        "level": "INFO",
        **fields,
        "FunctionName": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "local"),
        **metrics,
        "_aws": {"Timestamp": int(now.timestamp() * 1000), "CloudWatchMetrics": [directive]},
    }
    print(json.dumps(record))


def silence_libraries() -> None:
    """Keep libraries from logging: they name object keys, and pydicom quotes the headers of files."""
    logging.disable()
    warnings.simplefilter("ignore")
