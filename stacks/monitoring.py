"""The dashboard, and an alarm for each condition that needs an operator.

The name of each alarm is a heading in docs/runbook.md: what it means, where to look and what to do.
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
    IWidget,
    MathExpression,
    Metric,
    TextWidget,
    TreatMissingData,
)
from aws_cdk.aws_cloudwatch_actions import SnsAction
from aws_cdk.aws_sns import Topic
from constructs import Construct
from runs.metrics import NAMESPACE

from stacks.arrivals import Arrivals
from stacks.classifier import Classifier
from stacks.config import Config
from stacks.job_creator import JobCreator
from stacks.job_stream import JobStream
from stacks.storage import Storage

HOUR_MS = 3_600_000
PERIOD = Duration.minutes(5)  # of an alarm; some conditions may last for three periods
SHORT = Duration.minutes(1)  # of a rate on the dashboard

HEADER = """# Chest X-ray inference
**Research use only, not for patient care.** The name of each alarm is a heading in `docs/runbook.md`: what
it means, where to look and what to do. `cxr status RUN` shows the progress of a run, `cxr retry RUN` sends
the jobs in the failure bucket again, `cxr cancel RUN` stops a run, and `cxr doctor` checks the whole stack.
"""


class Monitoring(Construct):
    """The dashboard and the alarms. No metric has a run as a dimension: each run would cost money."""

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
        arrivals: Arrivals | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self._topic = Topic.from_topic_arn(self, "Topic", config.alarm_topic) if config.alarm_topic else None
        self._alarms: list[Alarm] = []

        # The age of the oldest job that Lambda gave to the classifier, in milliseconds.
        age = classifier.function.metric("IteratorAge", statistic="Maximum", period=PERIOD)
        oldest = config.record_age * HOUR_MS
        self._alarm(
            "JobsWaitTooLong",
            f"A job has waited for half of the {config.record_age} hours after which Lambda writes it to the "
            "failure bucket.",
            age,
            at_least=oldest // 2,
        )
        ages = _graph("Oldest job, milliseconds", age, alarm=oldest // 2, failure_bucket=oldest)

        # The work done. An invocation that ends early prints no metrics; Lambda counts it as an error.
        scored, failed, jobs_done, returned, an_image = (
            _metric(NAMESPACE, name, FunctionName=classifier.function.function_name)
            for name in ("ImagesScored", "ImagesFailed", "JobsDone", "JobsReturned", "MillisecondsPerImage")
        )
        self._alarm(
            "RunStalls",
            "For 15 minutes, the classifier has finished none of the jobs that it received.",
            jobs_done,
            below=1,
            periods=3,
        )
        images = _graph(
            "Images a second",
            _rate("(FILL(scored, 0) + FILL(failed, 0))", "done", scored=scored, failed=failed),
            _rate("FILL(failed, 0)", "of them failed", failed=failed),
        )

        # Jobs on their way from the job creator to the classifier.
        sent, resent = (
            _metric(NAMESPACE, name, FunctionName=creator.function.function_name)
            for name in ("JobsSent", "JobsResent")
        )
        arrived, read, reads, refused_writes, refused_reads = (
            _metric("AWS/Kinesis", name, StreamName=jobs.stream.stream_name)
            for name in (
                *("IncomingRecords", "GetRecords.Records", "GetRecords.Success"),
                *("WriteProvisionedThroughputExceeded", "ReadProvisionedThroughputExceeded"),
            )
        )
        self._alarm(
            "JobsNotRead",
            "For 15 minutes, Lambda has not read the stream. It should read once a second, jobs or not.",
            reads,
            below=1,
            periods=3,
            missing=TreatMissingData.BREACHING,
        ).node.add_dependency(classifier.mapping)
        delivery = _graph("Jobs", sent, resent, arrived, read, jobs_done, returned)

        # Jobs that ran out of retries (Lambda guide, monitoring-metrics-types, event source mapping metrics).
        # S3 counts once a day how many objects are still in the bucket.
        delivered, dropped = (
            _metric("AWS/Lambda", name, EventSourceMappingUUID=classifier.mapping.event_source_mapping_id)
            for name in ("OnFailureDestinationDeliveredEventCount", "DroppedEventCount")
        )
        objects = _metric(
            "AWS/S3", "NumberOfObjects", BucketName=jobs.failures.bucket_name, StorageType="AllStorageTypes"
        ).with_(statistic="Maximum", period=Duration.days(1))
        self._alarm(
            "JobsGivenUp", "Jobs ran out of retries, and Lambda wrote them to the failure bucket.", delivered
        )
        self._alarm(
            "JobsDropped",
            "Jobs ran out of retries, and Lambda could not write them to the failure bucket.",
            dropped,
        )
        self._alarm("FailureBucketNotEmpty", "Jobs in the failure bucket have not been sent again.", objects)
        failed_jobs = _graph(
            "Jobs out of retries, objects in the failure bucket", delivered, dropped, objects
        )

        # The functions. Lambda counts an invocation that times out as an error, with the timeout as its
        # duration. The classifier itself stops seconds earlier.
        errors, creator_errors = (
            part.function.metric_errors(period=PERIOD) for part in (classifier, creator)
        )
        throttles, creator_throttles = (
            part.function.metric_throttles(period=PERIOD) for part in (classifier, creator)
        )
        duration = classifier.function.metric_duration(statistic="Maximum", period=PERIOD)
        self._alarm(
            "ClassifierErrors",
            "An invocation of the classifier crashed, timed out or ran out of memory.",
            errors,
        )
        self._alarm(
            "ClassifierTimeouts",
            f"An invocation of the classifier took all of its {config.timeout} seconds.",
            duration,
            at_least=(config.timeout - 1) * 1000,
        )
        self._alarm(
            "ClassifierThrottles",
            "For 15 minutes, Lambda has refused to start classifiers.",
            throttles,
            periods=3,
        )
        self._alarm(
            "JobCreatorErrors",
            "The job creator did not start a run, or did not send all of its jobs.",
            creator_errors,
        )
        self._alarm("JobCreatorThrottles", "Lambda refused to start the job creator.", creator_throttles)

        of_arrivals = self._watch_arrivals(arrivals) if arrivals else []

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
                    failed_jobs,
                ],
                *([of_arrivals] if of_arrivals else []),
                [
                    _graph("Table, write units a second", _rate("units", "written", units=units)),
                    _graph("Table, throttled requests", write_throttles, read_throttles),
                    _graph("Stream, throttled writes and reads", refused_writes, refused_reads),
                ],
            ],
        )

    def _watch_arrivals(self, arrivals: Arrivals) -> list[IWidget]:
        """The alarms of what arrives, and its row of the dashboard."""
        oldest = arrivals.queue.metric_approximate_age_of_oldest_message(period=PERIOD)
        dead = arrivals.dead_letters.metric_approximate_number_of_messages_visible(
            statistic="Maximum", period=PERIOD
        )
        taken, dropped, sent = (
            _metric(NAMESPACE, name, FunctionName=arrivals.announcer.function_name)
            for name in ("EventsTaken", "EventsDropped", "ImagesSent")
        )
        missed, again = (
            _metric(NAMESPACE, name, FunctionName=arrivals.reconciler.function_name)
            for name in ("ArrivalsMissed", "ArrivalsSentAgain")
        )
        announcer_errors, reconciler_errors = (
            function.metric_errors(period=PERIOD) for function in arrivals.functions
        )
        self._alarm(
            "ArrivalsWait",
            "An image that arrived has waited for 15 minutes to be sent to the classifier.",
            oldest,
            at_least=15 * 60,
        )
        self._alarm("ArrivalsNotTaken", "An event of S3 was not taken, so its image was not sent.", dead)
        self._alarm(
            "ArrivalsMissed", "The reconciliation of a day found images that no event announced.", missed
        )
        self._alarm("ReconcilerErrors", "The standing run of a day was not closed.", reconciler_errors)
        return [
            _graph("Arrivals", taken, dropped, sent, missed, again),
            _graph("Oldest event in the queue, seconds; events not taken", oldest, dead),
            _graph("Errors of announcer and reconciler", announcer_errors, reconciler_errors),
        ]

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
        """An alarm that goes off when `metric` is at its threshold in each of the last `periods`.

        For most metrics, no data means that nothing is wrong.
        """
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
    """A rate for each second, of metrics that are sums."""
    first = next(iter(metrics))
    return MathExpression(
        expression=f"{expression} / PERIOD({first})", using_metrics=dict(metrics), label=label, period=SHORT
    )


def _graph(title: str, *metrics: IMetric, **lines: float) -> GraphWidget:
    """A graph over a third of the dashboard's width, with named horizontal lines."""
    annotations = [
        HorizontalAnnotation(label=label.replace("_", " "), value=value) for label, value in lines.items()
    ]
    return GraphWidget(title=title, left=list(metrics), left_annotations=annotations, width=8)
