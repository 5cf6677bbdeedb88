"""Errors that a person can put right."""


class InputError(Exception):
    """What was given cannot be used. The message says where it is wrong and what is expected."""


class NoSuchLabel(InputError):
    """There are no scores of the label that was asked for. The message says which there are."""


class NotMeasurable(InputError):
    """The scores of one label cannot be measured. Those of other labels may be."""


class Failed(Exception):
    """What was asked for was not done, or not all of it. The message says why and what to do."""
