"""The one exception that a user's mistake raises: a sentence that names the thing and the way out."""


class ScratchvitError(Exception):
    """Bad input from outside: a file, a picture, an option, a device. The command line prints its text and exits 1."""
