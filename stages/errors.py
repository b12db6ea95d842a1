"""The one exception that ends a stage with a line instead of a traceback."""


class UserError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to do."""
