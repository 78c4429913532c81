"""Exceptions that end a command with one message, ready to print.

The text says what was asked, what was found and what to type next. The door prints it.
"""


class UserError(Exception):
    """The request was wrong: recipe, data, arguments. Exit 2."""


class UnsuitableRecipe(UserError):
    """The recipe is sound, and these images, this teacher or this machine do not take it: another
    value of one of its keys would do. To a sweep it is a trial without a value.
    """


class Failure(Exception):
    """The request was right and could not be carried out: disk, net, divergence. Exit 1."""
