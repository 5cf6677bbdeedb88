"""Why an image has no score, and what is odd about one that has: every code with its meaning.

A meaning goes on from "The image ...". The docs, the report and the command line print from these lists.
"""

from enum import StrEnum


class _Code(StrEnum):
    """A code that is stored with a prediction."""

    meaning: str

    def __new__(cls, code: str, meaning: str) -> "_Code":
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member


class ErrorCode(_Code):
    """Why an image cannot be scored, however often it is tried. It is stored with a FAILED prediction."""

    IMAGE_MISSING = "IMAGE_MISSING", "is not in the bucket"
    IMAGE_ARCHIVED = "IMAGE_ARCHIVED", "is archived, and S3 gives it out only after it is restored"
    IMAGE_CUSTOMER_KEY = (
        "IMAGE_CUSTOMER_KEY",
        "is encrypted with a customer-provided key (SSE-C), without which S3 does not give it out",
    )
    IMAGE_EMPTY = "IMAGE_EMPTY", "holds no bytes"
    NOT_AN_IMAGE = "NOT_AN_IMAGE", "is neither PNG, JPEG nor DICOM"
    IMAGE_CORRUPT = (
        "IMAGE_CORRUPT",
        "has pixels that are cut short, damaged or of another size than it says, or would take a decoder "
        "minutes or gigabytes",
    )
    IMAGE_TOO_SMALL = "IMAGE_TOO_SMALL", "has a side under 64 pixels"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE", "has over 50 megapixels, or over 64 MiB as a file"
    IMAGE_TOO_NARROW = "IMAGE_TOO_NARROW", "is over four times as long as wide, or as wide as long"
    BIT_DEPTH_UNKNOWN = (
        "BIT_DEPTH_UNKNOWN",
        "declares more than 12 bits and uses 12 or fewer (PNG, or DICOM without a window), and the model's "
        "bundle names no bit depth",
    )
    DICOM_NOT_AN_IMAGE = (
        "DICOM_NOT_AN_IMAGE",
        "is DICOM of another kind: a report, a document, a directory (DICOMDIR) or the like, not an image",
    )
    DICOM_HEADER = (
        "DICOM_HEADER",
        "is DICOM whose header lacks, or states without sense, what the pixels cannot be read without",
    )
    DICOM_NO_PIXELS = "DICOM_NO_PIXELS", "is DICOM without pixel data of 8 or 16 bits"
    DICOM_MULTI_FRAME = "DICOM_MULTI_FRAME", "is DICOM with more than one frame"
    DICOM_PHOTOMETRIC = "DICOM_PHOTOMETRIC", "is DICOM in colour, or with a palette"
    DICOM_TRANSFER_SYNTAX = (
        "DICOM_TRANSFER_SYNTAX",
        "is DICOM in a compression that is not decoded, such as video",
    )


# What S3 answers to GetObject until somebody restores or copies the object (S3 API reference, GetObject; S3
# user guide, ServerSideEncryptionCustomerKeys).
REFUSED_BY_S3 = {
    "InvalidObjectState": ErrorCode.IMAGE_ARCHIVED,
    "InvalidRequest": ErrorCode.IMAGE_CUSTOMER_KEY,
}


class WarningCode(_Code):
    """What is odd about an image that was scored. It never stops the scoring."""

    COLOUR = "COLOUR", "has colour in it, where an X-ray is grey"
    LOOKS_SIDEWAYS = "LOOKS_SIDEWAYS", "looks more like a chest when turned by a quarter"
    LOOKS_INVERTED = "LOOKS_INVERTED", "looks like a chest when black and white change places"
    NOT_A_FRONTAL_CHEST = (
        "NOT_A_FRONTAL_CHEST",
        "does not look like a frontal chest, turned or inverted",
    )
    OUT_OF_TRAINING_RANGE = (
        "OUT_OF_TRAINING_RANGE",
        "is darker, brighter, flatter or harsher than every image the model was trained on",
    )
