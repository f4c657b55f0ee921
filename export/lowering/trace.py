"""The denoiser step and the prompt step as exported programs, weights as parameters.

All shapes are static but one: how many slots of the cache the step takes, where it takes those that hold a
frame and no others. Nothing is masked then, in a window that fills as in a full one.

Traced in float32; `export.lowering.precision` narrows the result. The names of parameters are those of the
checkpoint, the names of inputs and outputs those of `export.engine.signature`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind

from export.engine.manifest import Signature, StepWindow
from export.engine.signature import PROMPT, STEP, contract, zeros
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.fused_attention import fused
from vmla.transformer import VideoMLA

M = TypeVar("M", bound=nn.Module)


class PromptStep(VideoMLA):
    """The model whose forward is `encode_text`: text embedding to cross-attention keys and values."""

    def forward(self, text: Tensor) -> Tensor:  # type: ignore[override]
        """[B, tokens, text width] to [L, 2, B, tokens, D]."""
        return self.encode_text(text)

    @classmethod
    def of(cls, model: VideoMLA) -> PromptStep:
        """The prompt step of `model`, sharing its weights."""
        with torch.device("meta"):  # its own weights would be drawn only to be replaced
            step = cls(model.config)
        step.load_state_dict(model.state_dict(), assign=True)
        return step.eval().requires_grad_(False)


class HeldStep(VideoMLA):
    """The model whose forward knows that every slot that it is given holds a frame: nothing is masked."""

    def forward(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, text_kv: Tensor, cache: Tensor, slot_index: Tensor,
        chunk_index: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `VideoMLA.forward`, with `full=True`."""
        return super().forward(latents, timestep, text_kv, cache, slot_index, chunk_index, full=True)

    @classmethod
    def of(cls, model: VideoMLA) -> HeldStep:
        """`model` itself, but for its forward; its modules and weights are shared."""
        return acting_as(cls, model)


def acting_as(kind: type[M], module: nn.Module, *, without: str | None = None) -> M:
    """`module` itself, but for its class and a part that it is `without`; all else is shared."""
    # Another class on a shallow copy: parameters keep their names, and no weight is copied.
    other = copy.copy(module)
    other.__class__ = kind
    other.__dict__["_modules"] = {name: part for name, part in module._modules.items() if name != without}
    return cast(M, other)


def fake_model(config: ModelConfig) -> VideoMLA:
    """A model of any size with fake weights, which have shapes but no storage."""
    with FakeTensorMode():
        return VideoMLA(config).eval().requires_grad_(False)


def trace(
    model: VideoMLA,
    *,
    batch: int,
    window: StepWindow = "all",
    joined: bool = False,
    apart: Collection[str] = (),
) -> dict[str, ExportedProgram]:
    """Trace both programs of `model`, which may be fake, for `batch` videos on its own device."""
    step = trace_step(model, batch=batch, window=window, joined=joined, apart=apart)
    return {STEP: step, PROMPT: trace_prompt(model, batch=batch)}


def trace_step(
    model: VideoMLA,
    *,
    batch: int,
    window: StepWindow = "all",
    joined: bool = False,
    apart: Collection[str] = (),
) -> ExportedProgram:
    """`VideoMLA.forward` with exactly the signature of `export.engine.signature`.

    With the window `held`, the number of slots is a dimension of the program: any from none to all of them.
    With `joined`, latent attention has three products where it has seven (`vmla.fused_attention`), and its
    weights are not the checkpoint's. Query layers named in `apart`, which are to be quantised, stay layers.
    """
    if joined:
        with fake_mode_of(model):
            model = cast(VideoMLA, fused(model, apart))
    signature = contract(model.config, batch=batch)[STEP]
    if window == "all":
        return exported(model, signature)
    held, tokens = held_sizes(model.config)
    return exported(HeldStep.of(model), signature, {"cache": {2: tokens}, "slot_index": {0: held}})


def held_sizes(config: ModelConfig) -> tuple[Any, Any]:
    """The slots that hold a frame, and their tokens, as dimensions of a program: from none to all."""
    spec = CacheSpec.of(config)
    # The cache counts tokens where slot_index counts slots: one dimension, stated as a multiple of the other.
    held = Dim("held", min=0, max=spec.slots)
    return held, spec.tokens_per_frame * held if spec.tokens_per_frame > 1 else held


def trace_prompt(model: VideoMLA, *, batch: int) -> ExportedProgram:
    """`VideoMLA.encode_text`, run once for each prompt."""
    with fake_mode_of(model):
        step = PromptStep.of(model)
    return exported(step, contract(model.config, batch=batch)[PROMPT])


def exported(
    module: nn.Module, signature: Signature, dynamic: Mapping[str, dict[int, Any]] | None = None
) -> ExportedProgram:
    """Trace `module`, whose inputs and outputs are `signature`, on its own device.

    `dynamic` has the dimensions of inputs that are not static, by the input's name.
    """
    shapes = None if dynamic is None else tuple(dynamic.get(spec.name) for spec in signature.inputs)
    with fake_mode_of(module), torch.no_grad():
        example = zeros(signature.inputs, next(module.parameters()).device)
        # Not strict: plain tracing of Python, which needs no bytecode analysis of libraries' code.
        program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    drop_type_checks(program)
    _name_outputs(program, [spec.name for spec in signature.outputs])
    return without_unused_weights(program)


def fake_mode_of(module: nn.Module) -> AbstractContextManager[object]:
    """The fake mode that `module` was made in, or nothing for a real one."""
    weight = next(module.parameters())
    return weight.fake_mode if isinstance(weight, FakeTensor) else nullcontext()


def drop_type_checks(program: ExportedProgram) -> None:
    """Remove what `.to(x.dtype)` leaves in a graph: an assertion of the traced dtype, and a cast to it."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
        elif node.target is torch.ops.aten.to.dtype and node.args[0].meta["val"].dtype is node.args[1]:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


def _name_outputs(program: ExportedProgram, names: list[str]) -> None:
    """Give the output nodes the names of the contract."""
    outputs = program.graph.output_node().args[0]
    for node, spec, name in zip(outputs, program.graph_signature.output_specs, names, strict=True):  # type: ignore[arg-type]
        node.name = spec.arg.name = name  # type: ignore[union-attr]


def without_unused_weights(program: ExportedProgram) -> ExportedProgram:
    """The program without the parameters and buffers that its graph never reads."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    kept = []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT or node.users:
            kept.append(spec)
        else:
            program.graph.erase_node(node)
    targets = {spec.target for spec in kept}
    return rebuilt(
        program,
        signature=ExportGraphSignature(kept, program.graph_signature.output_specs),
        state_dict={name: value for name, value in program.state_dict.items() if name in targets},
        constants={name: value for name, value in program.constants.items() if name in targets},
    )


def rebuilt(
    program: ExportedProgram,
    *,
    signature: ExportGraphSignature,
    state_dict: dict[str, Tensor],
    constants: Mapping[str, Any],
) -> ExportedProgram:
    """`program` after an edit of its graph, checked again by torch."""
    program.graph.lint()
    program.graph_module.recompile()
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=signature,
        state_dict=state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=dict(constants),
    )
