"""The exception for bad input. Its message says in one sentence what is wrong and what to do."""


class ScratchvitError(Exception):
    """Bad input: a file, a picture, an option, a device. The command line prints the message and exits with 1."""
