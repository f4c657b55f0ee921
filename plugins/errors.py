"""The one exception for mistakes of the user rather than of the program."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can correct; its message says in one line what is wrong and what to do.

    Commands print the message without a traceback and exit with status 2.
    """


def missing_extra(package: str, extra: str) -> UserError:
    """The error for a missing optional `package`, naming the `extra` that installs it."""
    return UserError(f'{package} is not installed; install it with: pip install "videomla[{extra}]"')
