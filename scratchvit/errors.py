"""The exception for bad input. Its message says what is wrong and what to do, in one sentence."""


class ScratchvitError(Exception):
    """Bad input from outside: a file, a picture, an option, a device. The command line prints its text and exits 1."""
