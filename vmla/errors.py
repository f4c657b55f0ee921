"""The one exception that stands for a mistake of the person, not of the program."""

from plugins.errors import UserError, missing_extra

__all__ = ["UserError", "missing_extra"]
