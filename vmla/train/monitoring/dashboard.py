"""The numbers of a stage's log on a dashboard, if one is asked for: TensorBoard, or Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from plugins.errors import missing_extra
from vmla.train.loop.loop import Watcher
from vmla.train.loop.parallel import ALONE, Parallel


@contextmanager
def dashboard(kind: str | None, folder: Path, parallel: Parallel = ALONE) -> Iterator[list[Watcher]]:
    """A watcher that sends every logged number to TensorBoard or Weights & Biases; none for None.

    Raises:
        UserError: if the package is not installed.
    """
    if kind is None or parallel.rank:
        yield []
        return
    run: Any = TensorBoard(folder) if kind == "tensorboard" else WeightsAndBiases(folder)
    try:
        yield [run]
    finally:
        run.close()


class TensorBoard:
    """Writes each logged number as a scalar into `folder`/tensorboard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self.close = self._writer.close

    def __call__(self, name: str, line: dict[str, Any], average: dict[str, Tensor]) -> None:
        """Send the numbers of one step."""
        for key, value in line.items():
            if key != "step":
                self._writer.add_scalar(f"{name}/{key}", value, line["step"])


class WeightsAndBiases:
    """A run named after `folder`; stages have steps of their own."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing_extra("wandb", "wandb") from error
        self._run: Any = wandb.init(project="videomla", name=folder.name, dir=str(folder))
        self._known: set[str] = set()
        self.close = self._run.finish

    def __call__(self, name: str, line: dict[str, Any], average: dict[str, Tensor]) -> None:
        """Send the numbers of one step."""
        if name not in self._known:
            self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")
            self._known.add(name)
        self._run.log({f"{name}/{key}": value for key, value in line.items()})
