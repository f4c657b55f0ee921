"""The device that a name stands for, and how a person is told."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from plugins.errors import UserError
from plugins.names import meant
from vmla.cli.terminal import say

if TYPE_CHECKING:
    import torch

AUTO = "auto"
KINDS = (AUTO, "cpu", "cuda")
"""The usual names; torch knows more."""


def without_auto(name: str) -> str:
    """`name`, or what `auto` stands for: `cuda` if there is a GPU, else `cpu`."""
    import torch

    return name if name != AUTO else "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is a GPU if there is one, else the CPU.

    Raises:
        UserError: if PyTorch cannot use it.
    """
    import torch

    name = without_auto(name)
    try:
        with warnings.catch_warnings(action="ignore"):  # of names that will go away
            device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "meta" or (device.type == "cuda" and not torch.cuda.is_available()):
            raise NotImplementedError("it holds no numbers, or is not there")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        near = "" if name in KINDS else meant(name, KINDS)
        raise UserError(f"no device {name!r} here; use cpu, or a device that torch sees{near}") from error
    return device


def say_device(name: str) -> torch.device:
    """The device called `name`, as `choose_device` has it, said on standard error but for `--quiet`."""
    device = choose_device(name)
    tell_device(device, name)
    return device


def tell_device(device: torch.device, name: str) -> None:
    """Say on standard error, but for `--quiet`, what is computed on; why the CPU, if `name` is `auto`."""
    if logging.getLogger(__name__).isEnabledFor(logging.WARNING):
        unseen = " (PyTorch sees no GPU)" if name == AUTO and device.type == "cpu" else ""
        say(device_line(device) + unseen, err=True)


def device_line(device: torch.device) -> str:
    """The device in a line for a person, a GPU with its name."""
    import torch

    seen = device.type == "cuda" and torch.cuda.is_available()
    named = f", {torch.cuda.get_device_name(device)}" if seen else ""
    return f"device: {device}{named}"
