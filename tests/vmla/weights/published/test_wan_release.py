"""Wan2.1's own release gives codec, text encoder and tokenizer, as its -Diffusers folder does."""

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.references.wan_folder import distilled, release_folder, small_denoiser
from kit.tiny.models import draw

from plugins.errors import UserError
from vmla.train.cli.commands import main
from vmla.vae.wan import WanCodec
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.published.wan_release import carry_over_release, check_release

pytestmark = pytest.mark.cpu


def test_a_release_and_a_distilled_file_make_a_checkpoint(tmp_path):
    vae, text = release_folder(tmp_path / "Wan2.1-T2V-1.3B")
    distilled(tmp_path / "sf.pt", small_denoiser(in_channels=16))
    arguments = ["--from", tmp_path / "sf.pt", "--with", tmp_path / "Wan2.1-T2V-1.3B", "--preset",
                 "self-forcing", "--sizes", "debug", "-o", tmp_path / "sf"]  # fmt: skip
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    made = open_checkpoint(tmp_path / "sf")
    latents = draw(1, 16, 2, 2, 2)
    assert torch.equal(made.codec().decode(latents)[0], WanCodec(vae).decode(latents)[0])
    numbers, mask = made.text().tokenize(["a red star"])
    expected = text(input_ids=numbers, attention_mask=mask).last_hidden_state[:, :4]
    assert_close(made.text()(["a red star"])[:, :4], expected, rtol=1e-5, atol=1e-5)


def test_what_is_missing_or_of_another_model_is_refused(tmp_path):
    def refusal(call):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = tmp_path / "wan"
    release_folder(folder)
    said = refusal(lambda: check_release(folder, 48))
    assert "has 16 latent channels, the transformer 48" in said
    torch.save({"x": torch.ones(1)}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    (tmp_path / "out").mkdir()
    assert "is not a text encoder of Wan's release" in refusal(
        lambda: carry_over_release(folder, tmp_path / "out")
    )
    (folder / "Wan2.1_VAE.pth").rename(folder / "Wan2.2_VAE.pth")
    assert "is Wan2.2's own release; give the folder" in refusal(lambda: check_release(folder, 16))
