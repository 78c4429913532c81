"""Exceptions that end a command with one message, ready to print.

The text states what was requested, what was found and what to type next; cli.py prints it.
"""


class UserError(Exception):
    """The request was wrong: recipe, data, arguments. Exit 2."""


class UnsuitableRecipe(UserError):
    """The recipe is valid but unsuitable for these images, this teacher or this machine; another
    value of one of its keys would be suitable. A sweep counts it as a trial without a value.
    """


class Failure(Exception):
    """The request was right but could not be carried out: disk, network, divergence. Exit 1."""
