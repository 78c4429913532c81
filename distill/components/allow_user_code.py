"""Allow the code of networks that the user typed, and no other."""

from collections.abc import Iterable

from networks.network_catalogue import is_own

NETWORKS = ("student.network", "teacher.network")


def allow_user_code(overrides: Iterable[str]) -> None:
    """Allow the code of the user's own networks that `key=value` overrides name.

    The overrides are those that the user typed, such as `student.network=FILE.py:NAME`; a recipe's
    own text allows nothing.
    """
    for key, _, value in (text.partition("=") for text in overrides):
        network = value.strip().strip("\"'")
        if key.strip() in NETWORKS and is_own(network):
            from networks import user_code  # imports torch

            user_code.allow(network)
