"""The whole system: its parts and how they are wired."""

from aws_cdk import Stack
from aws_cdk.aws_kms import Key
from constructs import Construct

from stacks.arrivals import Arrivals
from stacks.classifier import Classifier, bundle_folder, read_model
from stacks.config import Config
from stacks.job_creator import JobCreator
from stacks.job_stream import JobStream
from stacks.monitoring import Monitoring
from stacks.network import Network
from stacks.outputs import add_outputs
from stacks.storage import Storage


class InferenceStack(Stack):
    """From chest X-rays in S3 to predictions in DynamoDB. Raises ConfigError if its model is wrong."""

    def __init__(self, scope: Construct, construct_id: str, *, config: Config) -> None:
        super().__init__(
            scope, construct_id, description="Scores chest X-rays. Research use only, not for patient care."
        )
        model = read_model(bundle_folder(config))
        key = Key.from_key_arn(self, "Key", config.kms_key) if config.kms_key else None
        storage = Storage(self, "Storage", config=config, key=key)
        jobs = JobStream(self, "Jobs", config=config, key=key, access_logs=storage.access_logs)
        classifier = Classifier(self, "Classifier", config=config, storage=storage, jobs=jobs, key=key)
        creator = JobCreator(
            self,
            "JobCreator",
            config=config,
            storage=storage,
            jobs=jobs,
            model=model,
            key=key,
        )
        arrivals = None
        if config.arrivals == "on":
            arrivals = Arrivals(
                self, "Arrivals", config=config, storage=storage, jobs=jobs, creator=creator, key=key
            )
        if config.network == "isolated":
            Network(
                self,
                "Network",
                config=config,
                storage=storage,
                jobs=jobs,
                creator=creator.function,
                classifier=classifier.function,
                arrivals=arrivals,
                key=key,
            )
        Monitoring(
            self,
            "Monitoring",
            config=config,
            storage=storage,
            jobs=jobs,
            creator=creator,
            classifier=classifier,
            arrivals=arrivals,
        )
        add_outputs(
            self,
            config=config,
            storage=storage,
            jobs=jobs,
            creator=creator,
            classifier=classifier,
            arrivals=arrivals,
        )
