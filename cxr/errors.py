"""Errors that a person can mend."""


class InputError(Exception):
    """What was given cannot be used; the message says where it is wrong and what is expected."""
