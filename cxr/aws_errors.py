"""AWS's errors in words that say what to do."""

from __future__ import annotations

from urllib.parse import urlsplit

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

AWS_ERRORS = (BotoCoreError, ClientError, ResponseParserError)

_EXPIRED = {"ExpiredToken", "ExpiredTokenException"}
# Services say by different codes that a request was signed too long ago, or in the future.
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_SIGNATURE = {"InvalidSignatureException", "SignatureDoesNotMatch"}
_CLOCK_MESSAGES = ("Signature expired", "Signature not yet current")  # AWS's, which name no object
_UNKNOWN = {
    "AuthFailure",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
}
_ELSEWHERE = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
DENIED = {"403", "AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_GONE = {"404", "NoSuchBucket", "ResourceNotFoundException"}
_THROTTLED = {
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_NO_CREDENTIALS = (
    exceptions.CredentialRetrievalError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
)
_ENDPOINT = "AWS_ENDPOINT_URL, endpoint_url in your AWS config file, and your proxy"
_NO_ANSWER = (exceptions.ConnectionError, exceptions.HTTPClientError)


def explained(error: BotoCoreError | ClientError | ResponseParserError) -> str:
    """What went wrong and what to do, in one line.

    AWS's own message is left out: some messages of S3 name the object, and a key can identify a patient.
    """
    if isinstance(error, ClientError):
        return _explained_answer(error)
    if isinstance(error, ResponseParserError):
        return f"what answered is not AWS; check {_ENDPOINT}"
    if isinstance(error, exceptions.ConfigParseError):
        return _explained_file(error)
    if isinstance(error, exceptions.InvalidRegionError):
        region = error.kwargs.get("region_name")
        return f"{region!r} is no AWS region; correct AWS_REGION, or the region in your AWS config file"
    if isinstance(error, _NO_CREDENTIALS):
        return "no AWS credentials were found; set AWS_PROFILE, or run `aws configure` or `aws sso login`"
    if isinstance(error, exceptions.ProfileNotFound):
        profile = error.kwargs.get("profile")
        return f"there is no AWS profile {profile}; set AWS_PROFILE to one of `aws configure list-profiles`"
    if isinstance(error, exceptions.NoRegionError):
        return "no AWS region is set; set AWS_REGION to where the stack is"
    if isinstance(error, _NO_ANSWER):
        host = urlsplit(str(error.kwargs.get("endpoint_url", ""))).netloc
        return (
            f"no answer from {host or 'AWS'}; check the network, AWS_REGION and AWS_ENDPOINT_URL "
            "(after `cxr local up`, run `source .cxr-local.env` again)"
        )
    return f"{type(error).__name__}; `cxr --debug` shows more"


def _explained_file(error: exceptions.ConfigParseError) -> str:
    """Which file cannot be parsed, and from which line on. The line itself may hold a secret."""
    cause = error.kwargs.get("error")
    lines = [getattr(cause, "lineno", None), *(line for line, _ in getattr(cause, "errors", ()))]
    line = next((f", line {number}" for number in lines if number), "")
    return (
        f"{error.kwargs.get('path')}{line}: expected an AWS config file in UTF-8, with lines [profile NAME] "
        "and NAME = VALUE; correct it, or set AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE to another"
    )


def _explained_answer(error: ClientError) -> str:
    code, operation = error.response["Error"]["Code"], error.operation_name
    message = error.response["Error"].get("Message") or ""
    if code in _CLOCK or message.startswith(_CLOCK_MESSAGES):
        return f"the clock of this machine is wrong, so AWS refuses its requests ({code}); set the clock"
    if code in _SIGNATURE:
        return (
            f"AWS refuses the signature ({code}): the clock of this machine is wrong, or the secret access "
            "key; set the clock, or run `aws configure`"
        )
    if code in _EXPIRED:
        return "the AWS credentials have expired; renew them, for example by `aws sso login`"
    if code in _UNKNOWN:
        return f"AWS does not know these credentials ({code}); set AWS_PROFILE, or run `aws configure`"
    if code in _ELSEWHERE:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        there = headers.get("x-amz-bucket-region", "the one it is in")
        return f"{operation}: the bucket is in another region; set AWS_REGION to {there}"
    if code in DENIED:
        return f"these credentials may not call {operation} ({code}); have it allowed, or set AWS_PROFILE"
    if code in _GONE:
        return f"{operation}: a part of the stack is gone ({code}); `cxr doctor` says how it comes back"
    if code in _THROTTLED:
        return f"{operation} is throttled by AWS ({code}); run the same command again in some minutes"
    return f"{operation} failed with {code}; `cxr --debug` shows more"
