"""AWS's errors in words that say what to do."""

from __future__ import annotations

from urllib.parse import urlsplit

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

AWS_ERRORS = (BotoCoreError, ClientError)

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_UNKNOWN = {
    "AuthFailure",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_ELSEWHERE = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
_DENIED = {"403", "AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
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
_NO_ANSWER = (exceptions.ConnectionError, exceptions.HTTPClientError)


def explained(error: BotoCoreError | ClientError) -> str:
    """What went wrong and what to do, in one line.

    AWS's own message is left out: some messages of S3 name the object, and a key can identify a patient.
    """
    if isinstance(error, ClientError):
        return _explained_answer(error)
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


def _explained_answer(error: ClientError) -> str:
    code, operation = error.response["Error"]["Code"], error.operation_name
    if code in _EXPIRED:
        return "the AWS credentials have expired; renew them, for example by `aws sso login`"
    if code in _UNKNOWN:
        return f"AWS does not know these credentials ({code}); set AWS_PROFILE, or run `aws configure`"
    if code in _ELSEWHERE:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        there = headers.get("x-amz-bucket-region", "the one it is in")
        return f"{operation}: the bucket is in another region; set AWS_REGION to {there}"
    if code in _DENIED:
        return f"these credentials may not call {operation} ({code}); have it allowed, or set AWS_PROFILE"
    if code in _GONE:
        return f"{operation}: a part of the stack is gone ({code}); deploy it again by `npx cdk deploy`"
    if code in _THROTTLED:
        return f"{operation} is throttled by AWS ({code}); run the same command again in some minutes"
    return f"{operation} failed with {code}; `cxr --debug` shows more"
