"""Our UMT5 encoder is transformers' own: the same draws, the same numbers to the last bit, the same files."""

import copy
import json

import pytest
import torch
from kit.tiny.models import randomise
from transformers import UMT5Config as TheirConfig
from transformers import UMT5EncoderModel
from transformers.models.umt5 import modeling_umt5

from plugins.errors import UserError
from vmla.text.umt5 import UMT5Config, UMT5Encoder, bucket
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

SIZES = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
TOKENS = 150
"""More than the farthest distance that has a bias of its own."""


@pytest.fixture(scope="module")
def pair():
    """Theirs and ours with the same weights, none of them left as they were drawn."""
    theirs = randomise(UMT5EncoderModel(TheirConfig(**SIZES)), 1).eval()
    ours = UMT5Encoder(UMT5Config(**SIZES)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture(scope="module")
def read():
    """Token numbers and masks of a full, a longer and a shorter prompt."""
    numbers = torch.randint(0, SIZES["vocab_size"], (3, TOKENS), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(numbers)
    mask[1, 90:] = mask[2, 3:] = 0
    return numbers, mask


AS_OURS = hasattr(modeling_umt5, "eager_attention_forward")
"""Whether theirs adds and multiplies in the order of ours: not before transformers 5.16."""


def same(found, expected, *, within):
    """Whether the numbers are the same; where theirs are rounded otherwise, whether they hardly differ."""
    return torch.equal(found, expected) if AS_OURS else (found - expected).abs().mean() < within


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "autocast"])
def test_it_gives_the_very_same_numbers(pair, read, narrow):
    numbers, mask = read
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        expected = pair[0](input_ids=numbers, attention_mask=mask).last_hidden_state
        found = pair[1](numbers, mask)
    assert same(found, expected, within=0.03 if narrow else 1e-5)
    assert found.std() > 0.1


def test_nothing_but_padding_is_no_nan(pair, read):
    with torch.no_grad():
        assert pair[1](read[0], torch.zeros_like(read[1])).isfinite().all()


def test_it_learns_as_theirs_does(pair, read):
    numbers, mask = read
    theirs, ours = (copy.deepcopy(model).requires_grad_() for model in pair)
    theirs(input_ids=numbers, attention_mask=mask).last_hidden_state.square().mean().backward()
    ours(numbers, mask).square().mean().backward()
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


@pytest.mark.skipif(not AS_OURS, reason="older versions of transformers draw in another order")
def test_fresh_weights_are_drawn_as_theirs_are():
    torch.manual_seed(3)
    theirs = UMT5EncoderModel(TheirConfig(**SIZES)).state_dict()
    torch.manual_seed(3)
    ours = UMT5Encoder(UMT5Config(**SIZES)).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 20)])
def test_distances_have_the_buckets_of_theirs(buckets, farthest):
    config = TheirConfig(
        **SIZES, relative_attention_num_buckets=buckets, relative_attention_max_distance=farthest
    )
    theirs = UMT5EncoderModel(config).encoder.block[0].layer[0].SelfAttention
    distance = torch.arange(-300, 300)
    assert torch.equal(bucket(distance, buckets, farthest), theirs._relative_position_bucket(distance))


def test_transformers_reads_what_is_saved(checkpoint, tmp_path):
    ours = open_checkpoint(checkpoint).text()
    theirs = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32)
    numbers, mask = ours.tokenize(["a red star"])
    with torch.no_grad():
        expected = theirs.eval()(input_ids=numbers, attention_mask=mask).last_hidden_state
        assert same(ours.encoder(numbers, mask), expected, within=1e-5)


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"feed_forward_proj": "relu"}, "feed_forward_proj relu"), ({"model_type": "t5"}, "model_type t5")],
)
def test_another_encoder_is_refused(setting, said):
    with pytest.raises(UserError, match=f"says {said}; known is"):
        UMT5Config.from_dict({**SIZES, **setting})


def test_a_size_that_is_missing_is_named():
    with pytest.raises(UserError, match=r"config.json.*d_ff"):
        UMT5Config.from_dict({name: size for name, size in SIZES.items() if name != "d_ff"})


def test_sizes_come_back_from_json():
    config = UMT5Config(**SIZES, layer_norm_epsilon=1e-5)
    assert UMT5Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
