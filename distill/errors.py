"""The one exception a user can cause.

Every fault of a request (recipe, data, arguments) is a `UserError`: its text says what was asked,
what was found and what to type next. The door prints it and exits 2; nothing else catches it.
"""


class UserError(Exception):
    """The request was wrong; `str(error)` is the whole message, ready to print."""
