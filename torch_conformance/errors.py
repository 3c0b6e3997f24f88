"""Errors that name bad input."""


class UsageError(Exception):
    """Bad input; its message is one line that names what is wrong and what to do. The main program exits with 2."""
