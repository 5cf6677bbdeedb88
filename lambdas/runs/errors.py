"""What AWS answered, in words that may be logged."""

from botocore.exceptions import BotoCoreError, ClientError


def reason(error: ClientError | BotoCoreError) -> str:
    """The operation and the error code, without AWS's message: that may name an object."""
    if isinstance(error, ClientError):
        return f"{error.operation_name}: {error.response['Error']['Code']}"
    return type(error).__name__
