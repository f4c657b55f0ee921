"""Attention to float8 codes by cuDNN, through its Python frontend (`nvidia-cudnn-frontend`).

Scope: `plugins.fp8.attention.reference_attend` on GPUs from Hopper on. cuDNN is asked for one operation,
`sdpa_fp8`, whose output is float8 as well: Hopper has no other. Codes have the layout [B, tokens, N, width],
with widths that divide by 16. What else cuDNN cannot do it refuses when a graph is built.

A graph is built once for each size and device, with the little memory that it works in. A call then launches
it in PyTorch's current stream, reads nothing from the device and allocates its output alone, so it can be
captured in a CUDA graph. Calls of one size share the working memory: two streams may not run them at once.

Not measured on a GPU: plans are built for a described H200 and B200 without one (`tests/plugins`), and
`plugins.fp8.attention_choice` checks every size on the device that it is taken on.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plugins.fp8.attention import SOFTMAX_SCALE

OLDEST_GPU = (9, 0)
"""Compute capability from which cuDNN attends to float8 codes."""
WIDTHS = 16
"""Widths of heads must be multiples of this."""


class AttentionSizes(NamedTuple):
    """The sizes of attention that a graph is built for."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    deep: int
    """Width of the values."""

    @classmethod
    def of(cls, query: Tensor, keys: Tensor, values: Tensor) -> AttentionSizes:
        """Of codes [B, S, N, d], [B, K, N, d] and [B, K, N, dv]."""
        batch, queries, heads, width = query.shape
        return cls(batch, heads, queries, keys.shape[1], width, values.shape[3])


class Definition(NamedTuple):
    """A graph of cuDNN's frontend that is not built yet, and the tensors that a call binds."""

    graph: Any
    inputs: tuple[Any, ...]
    """Queries, keys, values; their scales; the weights' inverse scale and scale; the output's scale."""
    outputs: tuple[Any, ...]
    """The output, and the largest weight and output, which cuDNN writes anyway."""


def define(sizes: AttentionSizes, **target: Any) -> Definition:
    """Describe attention of `sizes` to cuDNN; `target` is its handle, or the properties of a device."""
    import cudnn

    kind = cudnn.data_type
    graph = cudnn.pygraph(
        io_data_type=kind.FP8_E4M3, intermediate_data_type=kind.FLOAT, compute_data_type=kind.FLOAT, **target
    )

    def codes(name: str, tokens: int, width: int) -> Any:
        dim, stride = _layout(sizes, tokens, width)
        return graph.tensor(dim=dim, stride=stride, data_type=kind.FP8_E4M3, name=name)

    rows = [
        codes("query", sizes.queries, sizes.width),
        codes("keys", sizes.keys, sizes.width),
        codes("values", sizes.keys, sizes.deep),
    ]
    names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
    scales = [graph.tensor(dim=[1] * 4, stride=[1] * 4, data_type=kind.FLOAT, name=name) for name in names]
    out, _, *largest = graph.sdpa_fp8(
        *rows, *scales, generate_stats=False, attn_scale=sizes.width**-0.5, name="attention"
    )
    dim, stride = _layout(sizes, sizes.queries, sizes.deep)
    out.set_output(True).set_dim(dim).set_stride(stride).set_data_type(kind.FP8_E4M3)
    for each in largest:
        each.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(kind.FLOAT)
    return Definition(graph, (*rows, *scales), (out, *largest))


def _layout(sizes: AttentionSizes, tokens: int, width: int) -> tuple[list[int], list[int]]:
    """Dimensions in cuDNN's order [B, N, tokens, width], and strides of contiguous [B, tokens, N, width]."""
    row = sizes.heads * width
    return [sizes.batch, sizes.heads, tokens, width], [tokens * row, width, row, 1]


class Plan:
    """A graph built for one size and device, with the memory that it works in."""

    def __init__(self, sizes: AttentionSizes, device: torch.device, handle: Any) -> None:
        """Build it.

        Raises:
            RuntimeError: if cuDNN has nothing for it.
        """
        import cudnn

        try:
            self._defined = define(sizes, handle=handle)
            self._defined.graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        except cudnn.cudnnGraphNotSupportedError as error:
            raise RuntimeError(str(error)) from error
        bytes_needed = self._defined.graph.get_workspace_size()
        self._workspace = torch.empty(max(1, bytes_needed), dtype=torch.uint8, device=device)
        self._largest = torch.empty(2, 4, dtype=torch.float32, device=device)  # 16 bytes apart
        self._weights = torch.tensor([[1 / SOFTMAX_SCALE] * 4, [SOFTMAX_SCALE] * 4], device=device)

    def run(self, codes: Sequence[Tensor], scales: Sequence[Tensor], out: Tensor, handle: Any) -> None:
        """Launch it in the stream of `handle`; `codes` and `scales` as in `reference_attend`."""
        *descales, output_scale = scales
        inputs = (*codes, *descales, self._weights[0], self._weights[1], output_scale)
        outputs = (out, self._largest[0], self._largest[1])
        bound = zip((*self._defined.inputs, *self._defined.outputs), (*inputs, *outputs), strict=True)
        self._defined.graph.execute(
            {tensor: data.data_ptr() for tensor, data in bound}, self._workspace.data_ptr(), handle=handle
        )


class Plans:
    """The plans of a process, and a handle of cuDNN's for each device."""

    def __init__(self) -> None:
        self._plans: dict[tuple[AttentionSizes, torch.device], Plan] = {}
        self._handles: dict[torch.device, Any] = {}

    def attend(self, codes: Sequence[Tensor], scales: Sequence[Tensor], out: Tensor) -> None:
        """Run the plan for `codes`, after building it if there is none yet."""
        import cudnn

        sizes, device = AttentionSizes.of(codes[0], codes[1], codes[2]), out.device
        with torch.cuda.device(device):
            handle = self._handles.get(device)
            if handle is None:
                handle = self._handles[device] = cudnn.create_handle()
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
            plan = self._plans.get((sizes, device))
            if plan is None:
                plan = self._plans[sizes, device] = Plan(sizes, device, handle)
            plan.run(codes, scales, out, handle)


PLANS = Plans()
"""The plans that this process has built; every engine in it shares them."""


@torch.library.custom_op("vmla::cudnn_fp8_attention", mutates_args=(), device_types="cuda")
def attend(
    query: Tensor, keys: Tensor, values: Tensor,
    query_scale: Tensor, key_scale: Tensor, value_scale: Tensor, output_scale: Tensor,
) -> Tensor:  # fmt: skip
    """See `plugins.fp8.attention.reference_attend`; an operator, so that compiled blocks keep it whole."""
    out = _output(query, keys, values, query_scale, key_scale, value_scale, output_scale)
    codes = [x.contiguous() for x in (query, keys, values)]  # a compiler may have laid them out anew
    PLANS.attend(codes, (query_scale, key_scale, value_scale, output_scale), out)
    return out


@attend.register_fake
def _output(
    query: Tensor, keys: Tensor, values: Tensor,
    query_scale: Tensor, key_scale: Tensor, value_scale: Tensor, output_scale: Tensor,
) -> Tensor:  # fmt: skip
    return query.new_empty(*query.shape[:3], values.shape[3])


def unfit(width: int, deep: int, device: torch.device) -> str | None:
    """Why cuDNN cannot attend with heads of these widths on `device`, or None if that is worth a try."""
    if find_spec("cudnn") is None:
        return 'nvidia-cudnn-frontend is not installed; install it with: pip install "videomla[cudnn]"'
    if device.type != "cuda":
        return f"cuDNN runs on a GPU, and not on {device}"
    if torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return "cuDNN attends to float8 codes on sm_{}{} and newer".format(*OLDEST_GPU)
    if width % WIDTHS or deep % WIDTHS:
        return f"the widths of heads must divide by {WIDTHS}, and are {width} and {deep}"
    return None
