"""Checks before a GPU's figures mean anything: which kernels run, and that their results are right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.gpu.context import Context, Pieces
from bench.harness.engine_arms import failing
from bench.speed.attention_arms import RotatingInputs, Shape, absorbed, expanded, expansion, relative
from plugins import Backend, mla_attention, sdpa
from plugins.checks import FLOAT8 as FLOAT8_TYPE
from plugins.errors import UserError

ROOT = Path(__file__).parents[2]
CHECKED = Shape(batch=2, heads=3, queries=150, keys=483, nope=96, rotary=32, value=128, content=192)
"""The published widths, with odd numbers of tokens, so that the last tile of every kernel is partly empty."""
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3, FLOAT8_TYPE: 4e-2}
"""The largest error allowed, over the largest value: the same as in the kernels' own tests."""


def environment(context: Context) -> Pieces:
    """The device, and the attention kernel that PyTorch takes for the model's calls."""
    found: dict[str, Any] = {"torch_cuda": str(torch.version.cuda)}
    if context.device.type == "cuda":
        properties = torch.cuda.get_device_properties(context.device)
        found |= {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cudnn": torch.backends.cudnn.version(),
            "architectures": torch.cuda.get_arch_list(),
        }
    yield {**found, "sdpa": dict(_taken(context))}


def _taken(context: Context) -> Iterator[tuple[str, str]]:
    """The SDPA backend by call: a full window needs no mask, one with empty slots does."""
    s = context.attention
    for name, keys in (("window", s.keys), ("text", context.config.text_tokens)):
        query = torch.empty(1, s.heads, s.queries, s.width, dtype=context.dtype, device=context.device)
        key = torch.empty(1, s.heads, keys, s.width, dtype=context.dtype, device=context.device)
        mask = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=context.device)
        yield name, sdpa.taken(query, key, key)
        yield f"{name}, masked", sdpa.taken(query, key, key, mask.expand(1, 1, s.queries, keys))


def checks(context: Context) -> Pieces:
    """Compare every operator, backend and type with the reference; a failure is a row with its reason."""
    right = True
    for dtype in _types(context):
        inputs, name = (
            RotatingInputs(CHECKED, dtype=dtype, device=context.device),
            str(dtype).removeprefix("torch."),
        )
        for operator, backend, found in _checked(inputs, dtype):
            right = right and found.get("right", False)
            yield {"rows": [{"operator": operator, "backend": backend, "dtype": name, **found}]}
    yield {"right": right}


def _types(context: Context) -> tuple[torch.dtype, ...]:
    if context.device.type == "cuda":
        return torch.bfloat16, torch.float16, FLOAT8_TYPE
    return (torch.float32,)


def _checked(inputs: RotatingInputs, dtype: torch.dtype) -> Iterator[tuple[str, str, dict[str, Any]]]:
    backends: tuple[Backend, ...] = ("sdpa", "triton") if inputs.device.type == "cuda" else ("sdpa",)
    arms = {"attention": expanded, "absorbed": absorbed}
    if dtype != FLOAT8_TYPE:
        arms["expand"] = expansion
    for name, make in arms.items():
        for backend in backends:
            yield name, backend, _judged(lambda m=make, b=backend: m(inputs, b).error(), dtype)  # type: ignore[misc]
    for backend in backends:
        yield "attention, empty slots", backend, _judged(lambda b=backend: _masked(inputs, b), dtype)  # type: ignore[misc]


def _judged(call: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The error that `call` finds and whether it is within the limit, or why there is none."""
    with torch.inference_mode():
        error, refusal = failing(call)
    if refusal is not None:
        return {"refused": refusal}
    return {"error": error, "limit": LIMITS[dtype], "right": error <= LIMITS[dtype]}


def _masked(inputs: RotatingInputs, backend: Backend) -> float:
    """Error of attention if a third of the keys is empty and holds huge numbers, which must not matter."""
    query, valid = inputs.query[0], torch.arange(inputs.shape.keys, device=inputs.device) % 3 > 0
    most = torch.finfo(inputs.dtype).max
    keys, values = (
        torch.where(valid[:, None], tensor[0].float(), most).to(inputs.dtype)
        for tensor in (inputs.keys, inputs.values)
    )
    scales = inputs.scales if inputs.dtype == FLOAT8_TYPE else None
    out, wanted = (
        mla_attention(query, keys, values, valid, scales=scales, backend=chosen)
        for chosen in (backend, "reference")
    )
    return relative(out, wanted)


def tests(context: Context) -> Pieces:
    """Run the GPU tests of the kernels and of the layers that engines put in place of the model's.

    Raises:
        UserError: if pytest or a checkout is missing.
    """
    if find_spec("pytest") is None:
        raise UserError("pytest is not installed; install it with: pip install pytest")
    if not (ROOT / "tests" / "plugins").is_dir():
        raise UserError("no tests here; run this from a checkout")
    folders = ["tests/plugins", "tests/runtime/engines"]
    command = [sys.executable, "-m", "pytest", *folders, "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    yield {"passed": done.returncode == 0, "said": done.stdout.splitlines()[-20:]}
