"""The one exception for everything that a user can put right."""


class UserError(Exception):
    """A mistake in a config, a file or a command that the user can correct.

    The message is one line that names the file, key or identity in question and says what to do.
    The commands under ``tools/`` print it without a traceback and exit with status 2.
    """
