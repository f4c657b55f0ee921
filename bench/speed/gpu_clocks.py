"""A GPU's clocks, power and temperature, sampled ten times a second by `nvidia-smi` while something runs."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch

INTERVAL_MS = 100
WANTED = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
    "utilization.gpu": "busy_percent",
    "clocks_event_reasons.active": "limited_by",
}
"""The queried fields by nvidia-smi's names, and their names in documents. Older drivers lack the last."""
PROGRAM = ("nvidia-smi",)


class Clocks:
    """A context manager that samples the GPU `device`; on any other device it samples nothing."""

    def __init__(self, device: torch.device, program: Sequence[str] = PROGRAM) -> None:
        """`program` is nvidia-smi, or a stand-in with the same output."""
        self._device, self._program = device, tuple(program)
        self._process: subprocess.Popen[str] | None = None
        self._names: list[str] = []
        self._began = time.perf_counter()
        self.samples: list[dict[str, Any]] = []
        """Each with `seconds` since the beginning, and the readings under the names of `WANTED`."""
        self.refused: str | None = None
        """Why there are no samples."""

    def __enter__(self) -> Clocks:
        """Start nvidia-smi, which samples until the block ends."""
        self._began = time.perf_counter()
        if self._device.type == "cuda":
            try:
                self._start()
            except (OSError, subprocess.SubprocessError) as error:
                self.refused = f"{self._program[0]} tells nothing: {error}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop nvidia-smi and read its samples."""
        if self._process is not None:
            self._process.terminate()
            self._thread.join()
            self._process.wait()

    def summary(self) -> dict[str, Any]:
        """The least, the median and the most of everything that was told, and how often it was."""
        if self.refused is not None:
            return {"refused": self.refused}
        found: dict[str, Any] = {"samples": len(self.samples)}
        for name in self._names:
            values = [sample[name] for sample in self.samples if isinstance(sample[name], float)]
            if values:
                found[name] = {"least": min(values), "median": statistics.median(values), "most": max(values)}
        limits = {sample["limited_by"] for sample in self.samples if sample.get("limited_by") is not None}
        return {**found, "limited_by": sorted(limits)}

    def _start(self) -> None:
        told = subprocess.run(
            [*self._program, "--help-query-gpu"], capture_output=True, text=True, check=True, timeout=20
        )
        fields = [field for field in WANTED if field in told.stdout]
        self._names = [WANTED[field] for field in fields]
        self._process = subprocess.Popen(
            [
                *self._program, f"--id={_identity(self._device)}", f"--query-gpu={','.join(fields)}",
                "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            values = [part.strip() for part in line.split(",")]
            if len(values) == len(self._names):
                told = {name: _value(text) for name, text in zip(self._names, values, strict=True)}
                self.samples.append({"seconds": time.perf_counter() - self._began, **told})
            elif self.refused is None and not self.samples:
                self.refused = line.strip()


def _identity(device: torch.device) -> str:
    """The GPU as nvidia-smi knows it, whatever of all GPUs this process sees."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _value(text: str) -> float | str | None:
    """A number, a bit mask of reasons as text, or None if the GPU does not report it."""
    try:
        return float(text)
    except ValueError:
        return text if text.startswith("0x") else None
