"""The one exception that stands for a mistake of the person, not of the program."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that its maker can mend: one line that says what is wrong and what to do.

    Commands print the message without a traceback and exit with status 2.
    """


def missing_extra(package: str, extra: str) -> UserError:
    """The error for an optional `package` that is needed now and that `extra` installs."""
    return UserError(f'{package} is not installed; install it with: pip install "videomla[{extra}]"')
