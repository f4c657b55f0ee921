"""How published distilled models are sampled, each number from its authors' own configuration.

A `.pt` of the Self-Forcing family holds weights alone. Its window, its timesteps and its text length are in
the code that it was trained with, read at the commits named here; no weights were run. VideoMLA's numbers are
the paper's.

All of these re-noise to the next timestep after each step, have chunks of equal length
(`independent_first_frame: false`, or no such setting) and write clean entries at t = 0 (`context_noise: 0`).
Where they cache 21 latent frames without a sink (`kv_cache_size = 32760` of 1,560 tokens a frame), their own
code ends with these; here the oldest frame leaves first, and positions are relative to the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from plugins.errors import UserError
from vmla.cli.options.names import unknown_name
from vmla.config import Layout, ModelConfig
from vmla.scheduler import Sampler
from vmla.weights.published import JOINT

WAN_TEXT_TOKENS = 512
"""`text_len` in wan/configs/shared_config.py, and `seq_len` of the tokenizer in all their wrappers."""
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""`negative_prompt` of all their configurations. Distilled models are sampled without guidance: it is for
training them further."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model's named configuration: the settings that its weights do not tell."""

    sampler: Sampler
    sink: int
    history: int
    chunk: int
    """The window in latent frames, as in `ModelConfig`."""
    first_chunk: int = 0
    """Latent frames of the first chunk where it is shorter than the others, 0 where it is not."""
    text_tokens: int = WAN_TEXT_TOKENS
    negative_prompt: str = WAN_NEGATIVE
    layout: Layout = "mha"
    """Layout of the attention in its authors' weights."""
    note: str = ""
    """A sentence on the differences from its authors' own sampling."""
    source: str
    """Where these numbers are from: repository, commit, files."""

    def sizes(self, like: ModelConfig) -> ModelConfig:
        """`like` with the window and the text length of the preset."""
        return replace(
            like, sink=self.sink, history=self.history, chunk=self.chunk, text_tokens=self.text_tokens
        )

    def record(self, name: str) -> dict[str, Any]:
        """The preset as JSON values, for the record of a checkpoint that it was applied to."""
        values = {key: value for key, value in asdict(self).items() if key not in ("layout", "note")}
        return {"name": name, **values, "sampler": self.sampler.settings()}


FOUR_STEPS = Sampler(kind="renoise", steps=4, shift=5.0)
"""`denoising_step_list: [1000, 750, 500, 250]`, `warp_denoising_step: true`, `timestep_shift: 5.0`: timesteps
1000, 937.5, 833.3 and 625."""

CHUNK_BY_CHUNK = (
    "Rolling Forcing's own pipeline denoises five chunks at once, at five noise levels; here it runs chunk "
    "by chunk, which is the other half of its training"
)
PRESETS: Mapping[str, Preset] = {
    # arXiv 2605.30351: D.1 has the four steps and shift 5, D.4 one sink frame and the six most recent ones,
    # C.1 chunks of three. Whether the chunk itself is among the six is left open (`vmla.config.WINDOWS`);
    # here it is not. Its code and its configuration, stage3_long.yaml, are not public.
    "videomla": Preset(
        sampler=FOUR_STEPS, sink=1, history=6, chunk=3, layout="mla",
        source="arXiv 2605.30351 v1: C.1, D.1, D.4",
    ),
    # configs/self_forcing_dmd.yaml: num_frame_per_block 3, the four steps; no local_attn_size, so that
    # pipeline/causal_inference.py allocates 32760 tokens; utils/wan_wrapper.py: sink_size 0.
    "self-forcing": Preset(
        sampler=FOUR_STEPS, sink=0, history=18, chunk=3, source="guandeh17/Self-Forcing at 33593df"
    ),
    # configs/wan_causal_dmd.yaml, which the README names for the autoregressive model: denoising_step_list
    # [1000, 757, 522, 0], warp_denoising_step false, num_frame_per_block 3; the 0 is taken off again by
    # causvid/models/wan/causal_inference.py, which allocates 32760 tokens. The schedule that gives the noise
    # level of a timestep has shift 8 (`FlowMatchScheduler(shift=8.0)` in causvid/models/wan/wan_wrapper.py).
    "causvid": Preset(
        sampler=Sampler(kind="renoise", steps=3, shift=8.0, timestep_list=(1000, 757, 522)),
        sink=0, history=18, chunk=3, source="tianweiy/CausVid at ca21150",
    ),
    # configs/longlive_inference.yaml of branch v1.0: local_attn_size 12 with sink_size 3 and the current
    # chunk in it, num_frame_per_block 3, the four steps. The weights are longlive_base.pt with lora.pt on it.
    "longlive": Preset(
        sampler=FOUR_STEPS, sink=3, history=6, chunk=3, source="NVlabs/LongLive at e52d9ef (v1.0)"
    ),
    # configs/causal_forcing_dmd_chunkwise.yaml: num_frame_per_block 3, the four steps; 32760 tokens in
    # pipeline/causal_inference.py.
    "causal-forcing": Preset(
        sampler=FOUR_STEPS, sink=0, history=18, chunk=3, source="thu-ml/Causal-Forcing at 1fc7bbc"
    ),
    # configs/causal_forcing_dmd_framewise.yaml: the same with num_frame_per_block 1.
    "causal-forcing-framewise": Preset(
        sampler=FOUR_STEPS, sink=0, history=20, chunk=1, source="thu-ml/Causal-Forcing at 1fc7bbc"
    ),
    # configs/rolling_forcing_dmd.yaml: denoising_step_list [1000, 800, 600, 400, 200], warped with shift 5,
    # num_frame_per_block 3; wan/modules/causal_model.py: attention over 21 frames (max_attention_size), the
    # first block of which stays (sink_tokens). Its own pipeline denoises five chunks at once, at five noise
    # levels; chunk by chunk is the other half of its training (model/base.py, infer_w_rolling), and is what
    # runs here.
    "rolling-forcing": Preset(
        sampler=Sampler(kind="renoise", steps=5, shift=5.0),
        sink=3, history=15, chunk=3, source="TencentARC/RollingForcing at a1477d0", note=CHUNK_BY_CHUNK,
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: if there is none.
    """
    if name == JOINT:
        raise UserError(f"{JOINT}: {CHUNK_BY_CHUNK}; use --preset rolling-forcing")
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
