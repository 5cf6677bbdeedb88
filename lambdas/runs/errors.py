"""What AWS answered: in words that may be logged, and whether the same request may succeed later."""

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

# The codes of throttling of S3, DynamoDB, Kinesis and EventBridge, and S3's for a request that took too long.
_TEMPORARY = {
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "ThrottlingException",
    "TransactionInProgressException",
}


def reason(error: ClientError | BotoCoreError) -> str:
    """The operation and the error code, without AWS's message: that may name an object."""
    if isinstance(error, ClientError):
        return f"{error.operation_name}: {error.response['Error']['Code']}"
    return type(error).__name__


def is_temporary(error: ClientError | BotoCoreError) -> bool:
    """Whether AWS throttled the request, failed to answer it, or was not reached."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or error.response["Error"]["Code"] in _TEMPORARY
    return isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError)
