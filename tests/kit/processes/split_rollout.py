"""Rollouts of tiny models, alone or with their tokens split over processes."""

import torch
import torch.distributed
from kit.tiny.engines import Words
from kit.tiny.models import tiny_model

from runtime.engines.base import EagerEngine
from runtime.prompts.sources import PromptChange, PromptSchedule
from runtime.rollout.rollout import Rollout
from vmla.fused_attention import fused
from vmla.scheduler import Sampler

CASES = [
    ("mla", {}, {}), ("mla", {"absorbed": True}, {}), ("mla", {"as_it_is": True}, {}), ("mha", {}, {}),
    ("mla", {}, {"guidance_scale": 2.0, "negative_prompt": "less"}), ("joined", {}, {}), ("apart", {}, {}),
]  # fmt: skip
FUSED = {"joined": (), "apart": ("blocks.0.attn1.up_q", "blocks.1.attn1.up_q")}
"""Query layers that stay apart, by the name of a case whose other products are joined, as on a GPU."""
CHUNKS = 5
PROMPTS = PromptSchedule(
    [PromptChange(chunk=0, prompts=("one",)), PromptChange(chunk=3, prompts=("another",), policy="recache")]
)


def rolled_out(case, group=None):
    """The latents of a rollout, and what it leaves in the cache."""
    layout, how, sampling = case
    model = tiny_model(layout="mla" if layout in FUSED else layout)
    if layout in FUSED:
        model = fused(model, FUSED[layout])
    engine = EagerEngine(
        model, Words(model.config), device=torch.device("cpu"), dtype=torch.float32, group=group, **how
    )
    made = Rollout(engine, PROMPTS, Sampler(kind="euler", steps=2, **sampling), seeds=[3])
    latents = []
    for number in range(CHUNKS):
        if number:
            made.update_cache()
        latents.append(made.denoise())
    return torch.cat(latents, dim=2), made.buffers.cache.clone()


def process(rank, folder, count):
    """What one of `count` processes makes of each case, twice, in a file of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count
    )
    group = torch.distributed.group.WORLD
    torch.save([[rolled_out(case, group) for case in CASES] for _ in range(2)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
