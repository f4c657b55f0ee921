"""`--device`, `--text-device` and `--dtype`, as every command has them, and the device of a name."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from plugins.errors import UserError
from vmla.cli.options.choices import Choice
from vmla.cli.options.names import did_you_mean

if TYPE_CHECKING:
    import torch

FASTEST = "fastest"
"""In place of a type's name: the fastest on this processor, which is measured."""
AUTO = "auto"
KINDS = (AUTO, "cpu", "cuda")
"""The usual names; torch knows more."""
BY_ITSELF = "a GPU if there is one, else the CPU"


class DeviceName(click.ParamType):  # no generic one in click 8.2
    """The name of a torch device, or `auto`. Whether it is there is looked at when it is used."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The usual ones; torch knows more."""
        return f"[{'|'.join(KINDS)}|cuda:N|...]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The devices that a shell offers to complete."""
        return Choice(KINDS).shell_complete(ctx, param, incomplete)


def device_option(
    does: str = "Torch device", *, auto: str = BY_ITSELF, kinds: tuple[str, ...] | None = None
) -> Callable[[Any], Any]:
    """The option `--device`.

    Args:
        does: what it is, such as `Torch device that trains`.
        auto: what `auto`, the default, stands for.
        kinds: the only names that it takes, besides `auto`; any device of torch if not given.
    """
    taken: click.ParamType[str] = DeviceName() if kinds is None else Choice((AUTO, *kinds))
    return click.option("--device", type=taken, default=AUTO, help=f"{does}; auto: {auto}.")


def dtype_option(*, fastest: bool) -> Callable[[Any], Any]:
    """The option `--dtype`, for commands that make videos; `fastest` is for those that may measure."""
    kinds = (AUTO, "float32", "bfloat16", "float16", *((FASTEST,) if fastest else ()))
    measured = "; fastest is measured on a CPU" if fastest else ""
    return click.option(
        "--dtype", type=Choice(kinds), default=AUTO, show_default=True,
        help=f"Data type that the model computes in{measured}.",
    )  # fmt: skip


def text_device_option() -> Callable[[Any], Any]:
    """The option `--text-device`, for commands that encode prompts beside a model."""
    return click.option(
        "--text-device", type=DeviceName(), default=AUTO,
        help="Torch device of the text encoder; auto: the model's. cpu leaves a GPU's memory to the videos.",
    )  # fmt: skip


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
        near = "" if name in KINDS else did_you_mean(name, KINDS)
        raise UserError(f"no device {name!r} here; use cpu, or a device that torch sees{near}") from error
    return device


def choose_text_device(name: str, device: torch.device) -> torch.device:
    """The device called `name` for the text encoder of a model on `device`, which `auto` stands for.

    One name of the same device, such as `cuda:0` beside `cuda`, gives `device` itself.

    Raises:
        UserError: if PyTorch cannot use it.
    """
    if name == AUTO:
        return device
    chosen = choose_device(name)
    same = (chosen.type, chosen.index or 0) == (device.type, device.index or 0)
    return device if same else chosen


def say_device(name: str) -> torch.device:
    """The device called `name`, as `choose_device` has it, said as `tell_device` does."""
    device = choose_device(name)
    tell_device(device, name)
    return device


def tell_device(device: torch.device, name: str) -> None:
    """Say on standard error what is computed on, and why the CPU if `name` is `auto`.

    It is for whoever watches a terminal or asks for more by `-v`; in a pipe an error stays the only line.
    """
    if logging.getLogger(__name__).isEnabledFor(logging.INFO):
        unseen = " (PyTorch sees no GPU)" if name == AUTO and device.type == "cpu" else ""
        click.echo(device_line(device) + unseen, err=True)


def device_line(device: torch.device) -> str:
    """The device in a line for a person, a GPU with its name."""
    import torch

    seen = device.type == "cuda" and torch.cuda.is_available()
    named = f", {torch.cuda.get_device_name(device)}" if seen else ""
    return f"device: {device}{named}"
