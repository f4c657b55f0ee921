"""FlexAttention on a GPU against a rollout. One command: python -m pytest tests/vmla -m gpu"""

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw, tiny_model

from vmla.cache import CacheSpec
from vmla.packed_sequence import PackedWindow, dense_mask
from vmla.train.objectives.packed_clip import pack_clip
from vmla.train.objectives.teacher_forcing import Forcing, forcing_loss, forcing_loss_at_once

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# FlexAttention has kernels for heads of 16 channels and more.
# Frames of 512 tokens make clips that are long enough for it.
SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 32,
    "qk_rope_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 32,
    "sample_height": 32, "sample_width": 64,
}  # fmt: skip
FIXED = Forcing(copies=1, own_share=0.0)


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3, 4], [0, 7, 8, 9]], ids=str)
@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_loss_and_gradients_are_those_of_a_rollout(layout, numbers):
    rolled, at_once = (tiny_model(layout=layout, **SIZES).cuda().requires_grad_(True) for _ in range(2))
    config, losses = rolled.config, []
    frames = len(numbers) * config.chunk
    latents = draw(2, config.in_channels, frames, config.sample_height, config.sample_width).cuda()
    text = draw(2, config.text_tokens, config.text_dim, seed=1).cuda()
    passes = (rolled, forcing_loss, rolled), (at_once, forcing_loss_at_once, at_once.forward_packed)
    for model, loss, run in passes:
        rest = CacheSpec.of(config), latents, model.encode_text(text), numbers, FIXED
        losses.append(loss(run, *rest, torch.Generator().manual_seed(3)))
        losses[-1].backward()
    # Products in TF32 or other orders: the bound is that of reduced precision, the gradients' too.
    assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    for (name, one), (_, other) in zip(rolled.named_parameters(), at_once.named_parameters(), strict=True):
        scale = float(one.grad.abs().max())
        assert scale > 0, name
        assert_close(other.grad, one.grad, rtol=0, atol=5e-3 * scale)


def test_on_a_gpu_blocks_are_left_out_and_pairs_hidden_alike():
    model = tiny_model(**SIZES).cuda()
    clip = pack_clip(CacheSpec.of(model.config), range(5))
    window = clip.window(model.rope, torch.device("cuda"))
    assert not isinstance(window.mask, torch.Tensor)
    tokens = model.config.tokens_per_frame
    query, keys = (draw(2, 2, count * tokens, 32, seed=count).cuda() for count in clip.visible.shape)
    values, mask = torch.randn_like(keys), dense_mask(clip.visible.cuda(), tokens)
    dense = PackedWindow(window.repeated, window.valid, window.cos, window.sin, mask)
    assert_close(window.attend(query, keys, values), dense.attend(query, keys, values), rtol=5e-3, atol=5e-3)
