"""The exceptions that end a command with one line instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can fix. The message says what is wrong, where, and what to do."""


class StillRunningError(UserError):
    """Another process is writing the same files; nothing was changed."""
