"""What a person watches: a dashboard for the wall, and an alarm for each thing that needs somebody.

Every alarm's name is a heading of docs/runbook.md, which says what it means, how to look and what to do.
"""

from aws_cdk import Duration
from aws_cdk.aws_cloudwatch import (
    Alarm,
    AlarmStatusWidget,
    ComparisonOperator,
    Dashboard,
    GraphWidget,
    HorizontalAnnotation,
    IMetric,
    MathExpression,
    Metric,
    TextWidget,
    TreatMissingData,
)
from aws_cdk.aws_cloudwatch_actions import SnsAction
from aws_cdk.aws_sns import Topic
from constructs import Construct
from runs.metrics import NAMESPACE

from stacks.classifier import Classifier
from stacks.config import Config
from stacks.job_creator import JobCreator
from stacks.job_stream import JobStream
from stacks.storage import Storage

HOUR_MS = 3_600_000
PERIOD = Duration.minutes(5)  # of an alarm; three make the quarter of an hour that some things may last
SHORT = Duration.minutes(1)  # of a rate on the dashboard

HEADER = """# Chest X-ray inference
**Research use only, not for patient care.** An alarm's name is a heading of `docs/runbook.md`, which says
what it means, how to look and what to do. `cxr status RUN` says how far a run is, `cxr retry RUN` sends again
what Lambda gave up, `cxr cancel RUN` stops a run, and `cxr doctor` looks at the whole stack.
"""


class Monitoring(Construct):
    """The dashboard and its alarms. No metric has a run or a key in it: each would be one more to pay for."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: Config,
        storage: Storage,
        jobs: JobStream,
        creator: JobCreator,
        classifier: Classifier,
    ) -> None:
        super().__init__(scope, construct_id)
        self._topic = Topic.from_topic_arn(self, "Topic", config.alarm_topic) if config.alarm_topic else None
        self._alarms: list[Alarm] = []

        # How old the oldest job is that was given to the classifier, in milliseconds.
        age = classifier.function.metric("IteratorAge", statistic="Maximum", period=PERIOD)
        given_up_at = config.record_age * HOUR_MS
        self._alarm(
            "JobsWaitTooLong",
            f"A job has waited for half of the {config.record_age} hours after which Lambda gives it up.",
            age,
            at_least=given_up_at // 2,
        )
        ages = _graph("Oldest job, milliseconds", age, alarm=given_up_at // 2, given_up=given_up_at)

        # What is done. An invocation that does not get to its end has no line and no data, but is an error.
        scored, failed, jobs_done, returned, an_image = (
            _metric(NAMESPACE, name, FunctionName=classifier.function.function_name)
            for name in ("ImagesScored", "ImagesFailed", "JobsDone", "JobsReturned", "MillisecondsPerImage")
        )
        self._alarm(
            "RunStalls",
            "For a quarter of an hour every job that the classifier was given has been returned.",
            jobs_done,
            below=1,
            periods=3,
        )
        images = _graph(
            "Images a second",
            _rate("(FILL(scored, 0) + FILL(failed, 0))", "done", scored=scored, failed=failed),
            _rate("FILL(failed, 0)", "of them failed", failed=failed),
        )

        # How jobs get from the job creator to the classifier.
        sent, resent = (
            _metric(NAMESPACE, name, FunctionName=creator.function.function_name)
            for name in ("JobsSent", "JobsResent")
        )
        arrived, read, looked, refused, too_fast = (
            _metric("AWS/Kinesis", name, StreamName=jobs.stream.stream_name)
            for name in (
                *("IncomingRecords", "GetRecords.Records", "GetRecords.Success"),
                *("WriteProvisionedThroughputExceeded", "ReadProvisionedThroughputExceeded"),
            )
        )
        self._alarm(
            "JobsNotRead",
            "Nobody reads the stream, which Lambda looks into each second even while it is empty.",
            looked,
            below=1,
            periods=3,
            missing=TreatMissingData.BREACHING,
        ).node.add_dependency(classifier.mapping)
        delivery = _graph("Jobs", sent, resent, arrived, read, jobs_done, returned)

        # What Lambda has given up (DG monitoring-metrics-types, event source mapping metrics). The bucket's
        # own count says whether it is still there, but S3 counts once a day.
        given_up, dropped = (
            _metric("AWS/Lambda", name, EventSourceMappingUUID=classifier.mapping.event_source_mapping_id)
            for name in ("OnFailureDestinationDeliveredEventCount", "DroppedEventCount")
        )
        objects = _metric(
            "AWS/S3", "NumberOfObjects", BucketName=jobs.failures.bucket_name, StorageType="AllStorageTypes"
        ).with_(statistic="Maximum", period=Duration.days(1))
        self._alarm("JobsGivenUp", "Lambda gave up jobs, which are now in the failure bucket.", given_up)
        self._alarm(
            "JobsDropped", "Lambda gave up jobs and did not get them into the failure bucket.", dropped
        )
        self._alarm("FailureBucketNotEmpty", "Jobs that Lambda gave up still wait to be sent again.", objects)
        lost = _graph("Jobs given up, objects in the failure bucket", given_up, dropped, objects)

        # How the functions fare. An invocation that times out is in Errors too, and has the timeout as its
        # Duration; the classifier itself stops seconds earlier.
        errors, creator_errors = (
            part.function.metric_errors(period=PERIOD) for part in (classifier, creator)
        )
        throttles, creator_throttles = (
            part.function.metric_throttles(period=PERIOD) for part in (classifier, creator)
        )
        duration = classifier.function.metric_duration(statistic="Maximum", period=PERIOD)
        self._alarm("ClassifierErrors", "The classifier crashed, timed out or ran out of memory.", errors)
        self._alarm(
            "ClassifierTimeouts",
            f"The classifier took all of its {config.timeout} seconds.",
            duration,
            at_least=(config.timeout - 1) * 1000,
        )
        self._alarm(
            "ClassifierThrottles",
            "For a quarter of an hour Lambda has refused to start classifiers.",
            throttles,
            periods=3,
        )
        self._alarm("JobCreatorErrors", "A run did not start, or not all its jobs were sent.", creator_errors)
        self._alarm("JobCreatorThrottles", "Lambda refused to start the job creator.", creator_throttles)

        at_once = classifier.function.metric("ConcurrentExecutions", statistic="Maximum", period=SHORT)
        durations, image_durations = (
            [
                metric.with_(statistic=statistic, label=statistic, period=PERIOD)
                for statistic in ("p50", "p99")
            ]
            for metric in (duration, an_image)
        )
        units, write_throttles, read_throttles = (
            _metric("AWS/DynamoDB", name, TableName=storage.table.table_name)
            for name in ("ConsumedWriteCapacityUnits", "WriteThrottleEvents", "ReadThrottleEvents")
        )

        Dashboard(
            self,
            "Dashboard",
            default_interval=Duration.hours(3),
            widgets=[
                [TextWidget(markdown=HEADER, width=24, height=3)],
                [AlarmStatusWidget(alarms=self._alarms, title="Alarms", width=24, height=4)],
                [images, delivery, ages],
                [
                    _graph(
                        "Classifiers at once", at_once, lanes=config.shards * config.parallelization_factor
                    ),
                    _graph("Errors", errors, creator_errors),
                    _graph("Throttles", throttles, creator_throttles),
                ],
                [
                    _graph("An invocation, milliseconds", *durations, timeout=config.timeout * 1000),
                    _graph("An image, milliseconds", *image_durations),
                    lost,
                ],
                [
                    _graph("Table, write units a second", _rate("units", "written", units=units)),
                    _graph("Table, throttled requests", write_throttles, read_throttles),
                    _graph("Stream, refused writes and reads", refused, too_fast),
                ],
            ],
        )

    def _alarm(
        self,
        name: str,
        meaning: str,
        metric: IMetric,
        *,
        at_least: float = 1,
        below: float | None = None,
        periods: int = 1,
        missing: TreatMissingData = TreatMissingData.NOT_BREACHING,
    ) -> Alarm:
        """Rings when each of the last `periods` has `metric` at its bound. Mostly, no data is good news."""
        alarm = Alarm(
            self,
            name,
            alarm_description=f"{meaning} What to do: docs/runbook.md, {name}.",
            metric=metric,
            threshold=at_least if below is None else below,
            comparison_operator=ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
            if below is None
            else ComparisonOperator.LESS_THAN_THRESHOLD,
            evaluation_periods=periods,
            treat_missing_data=missing,
        )
        if self._topic:
            alarm.add_alarm_action(SnsAction(self._topic))
            alarm.add_ok_action(SnsAction(self._topic))
        self._alarms.append(alarm)
        return alarm


def _metric(namespace: str, name: str, **dimensions: str) -> Metric:
    return Metric(
        namespace=namespace, metric_name=name, dimensions_map=dimensions, statistic="Sum", period=PERIOD
    )


def _rate(expression: str, label: str, **metrics: Metric) -> MathExpression:
    """A sum by the second."""
    first = next(iter(metrics))
    return MathExpression(
        expression=f"{expression} / PERIOD({first})", using_metrics=dict(metrics), label=label, period=SHORT
    )


def _graph(title: str, *metrics: IMetric, **lines: float) -> GraphWidget:
    """A graph of a third of the width, with named horizontal lines."""
    annotations = [
        HorizontalAnnotation(label=label.replace("_", " "), value=value) for label, value in lines.items()
    ]
    return GraphWidget(title=title, left=list(metrics), left_annotations=annotations, width=8)
