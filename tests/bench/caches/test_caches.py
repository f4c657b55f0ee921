"""Forms of a cache: what they keep, what they cost in bytes, and that nothing else differs."""

import json

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.refusals import assert_one_line
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.models import draw

from bench.caches.videos import CONTROL, LATENT, PER_HEAD, errors
from bench.cli import main
from bench.report.schema.kinds import read_results
from runtime.engines.layers.cache_formats import AsTheyAre, Scaled
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

ROTARY = 16


@pytest.mark.parametrize("bits, most", [(8, 2**-4), (4, 1 / 14)])
def test_codes_are_within_half_a_step(bits, most):
    entries = draw(2, 1, 5, 64 + ROTARY, seed=3)
    entries[0, 0, 0] = 0
    form = Scaled("x", bits=bits, rotary=ROTARY)
    back = form.unpack(form.pack(entries), torch.float32)
    groups = entries[..., :64].unflatten(-1, (2, 32))
    allowed = most * groups.abs().amax(-1, keepdim=True).expand_as(groups) * 1.01
    assert ((back[..., :64].unflatten(-1, (2, 32)) - groups).abs() <= allowed).all()
    assert torch.equal(back[..., 64:], entries[..., 64:].bfloat16().float())
    assert not back[0, 0, 0].any()


def test_bytes_are_those_of_what_is_kept():
    # A latent of 192 and a rotary key of 32, as at the size of Wan2.1-1.3B.
    sizes = [
        form.bytes_per_token(224)
        for form in (
            AsTheyAre("x", torch.bfloat16), Scaled("x", bits=8, rotary=32), Scaled("x", bits=4, rotary=32)
        )
    ]  # fmt: skip
    assert sizes == [448, 192 + 12 + 64, 96 + 12 + 64]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    folder = debug_checkpoint(tmp_path_factory.mktemp("caches") / "debug")
    return errors(open_checkpoint(folder), "a red star", 3)


def test_a_cache_per_head_is_the_same_model(wrong):
    assert wrong[LATENT] == wrong[CONTROL] == 0
    assert wrong[PER_HEAD] < 1e-4


def test_fewer_bits_are_further_off(wrong):
    assert 0 < wrong["latent, bfloat16"] < wrong["latent, fp8"] < wrong["latent, 4-bit"] < 1


def test_the_command_measures_all_forms_in_turns(checkpoint, tmp_path):
    path = tmp_path / "caches.json"
    done = CliRunner().invoke(
        main, ["caches", "--checkpoint", str(checkpoint), "--seconds", "5", "-o", str(path)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])
    rows = read_results(path)["rows"]
    assert [row["cache"] for row in rows] == [LATENT, PER_HEAD, *list(found)[4:]]
    assert len({len(row["along"]) for row in rows}) == 1 and len(rows) == 5
    sizes = [row["bytes_per_token_and_layer"] for row in rows]
    assert sizes[1] > sizes[0] > sizes[2] > sizes[3] > sizes[4]
    for row in rows:
        used = [point["bytes"] for point in row["along"]]
        assert used == sorted(used) and used[-1] == row["bytes_per_video"] and used[0] < used[-1]
    assert rows[0]["time_over_latent"] == 1 and not rows[0]["differs"]
    assert "| latent, 4-bit |" in done.output


def test_a_model_without_latents_is_refused(tmp_path):
    folder = debug_checkpoint(tmp_path / "heads", layout="mha")
    assert_one_line(CliRunner().invoke(main, ["caches", "--checkpoint", str(folder)]), "has no latents")


def test_a_full_range_of_integers_comes_back():
    whole = torch.arange(-7.0, 9.0).clamp(max=7)
    entries = torch.cat([whole, torch.zeros(2)])
    form = Scaled("x", bits=4, rotary=2)
    assert_close(form.unpack(form.pack(entries), torch.float32), entries, rtol=1e-3, atol=0)
