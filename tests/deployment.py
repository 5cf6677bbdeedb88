"""The stack on local AWS, which several test files share."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self

import boto3

from cxr.local_aws.local_aws import LocalAws


class Deployment(NamedTuple):
    """A stack that the real CDK has deployed to local AWS."""

    aws: LocalAws
    outputs: dict[str, str]
    environment: dict[str, str]  # leads to it

    @classmethod
    @contextmanager
    def made(cls, image: str | None = None) -> Iterator[Self]:
        """A new one, to which nothing leads yet. With an `image`, the classifier runs in its containers."""
        outer = dict(os.environ)
        with LocalAws(image=image) as aws:
            deployment = cls(aws, aws.deploy("retries=8", "imagesPerJob=8"), dict(os.environ))
            _set_environment(outer)
            yield deployment

    @contextmanager
    def used(self) -> Iterator[Self]:
        """Lead every AWS SDK and tool to this deployment."""
        outer = dict(os.environ)
        _set_environment(self.environment)
        yield self
        _set_environment(outer)


@contextmanager
def retries(classifier: str, number: int) -> Iterator[None]:
    """While the block runs, Lambda retries a job of the stack so often before it gives it up."""
    functions = boto3.client("lambda")
    (mapping,) = functions.list_event_source_mappings(FunctionName=classifier)["EventSourceMappings"]
    functions.update_event_source_mapping(UUID=mapping["UUID"], MaximumRetryAttempts=number)
    yield
    functions.update_event_source_mapping(
        UUID=mapping["UUID"], MaximumRetryAttempts=mapping["MaximumRetryAttempts"]
    )


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
