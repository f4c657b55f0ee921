"""Conversion to latent attention keeps what its rank allows, and says what it lost."""

import json
from dataclasses import fields

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.refusals import assert_one_line
from kit.tiny.models import draw, tiny_config, tiny_model
from kit.tiny.passes import window_at
from safetensors.torch import load_file, save_file

from plugins.atomic_files import TEMPORARY_SUFFIX
from vmla.attention import LatentAttention
from vmla.cache import CacheSpec
from vmla.config import named_config
from vmla.train.cli.commands import main
from vmla.weights.checkpoint import WEIGHTS, open_checkpoint
from vmla.weights.conversion import convert
from vmla.weights.conversion.activations import CalibrationBatch, all_frames, layers_of
from vmla.weights.conversion.convert import Conversion
from vmla.weights.conversion.spectral import (
    AttentionInputs,
    Choices,
    channels,
    convert_attention,
    factor,
    norm_gain,
    rms,
)
from vmla.weights.source import open_source, published

pytestmark = pytest.mark.cpu

EXACT = {"kv_lora_rank": 8, "qk_rope_head_dim": 8, "q_lora_rank": 32}
HEADS, WIDTH, HEAD = 2, 32, 16


def orthonormal(rows, columns, seed):
    return torch.linalg.qr(draw(columns, rows, seed=seed).double())[0].T


def low_rank_wan(seed=0):
    """Weights of Wan's attention that eight latent channels and four shared pairs hold exactly.

    And the basis of their inputs [8, D]. Keys have one size for all inputs of one size.
    """
    basis = orthonormal(8, WIDTH, seed)
    rotary, content = channels(tiny_config(**EXACT))
    per_head = torch.zeros(HEADS, HEAD, 8).double()
    within = draw(HEADS * len(content), 8, seed=seed + 1).double()
    per_head[:, content] = torch.linalg.qr(within)[0].reshape(HEADS, len(content), 8)
    # Each head sees the shared pairs turned by its own angle.
    angles = draw(HEADS, len(rotary) // 2, seed=seed + 2).double()
    for head in range(HEADS):
        for pair in range(len(rotary) // 2):
            turn = torch.tensor([[1, -1], [1, 1]]).double()
            turn = turn * torch.stack([angles[head, pair].cos(), angles[head, pair].sin()]).repeat(2, 1)
            turn[1] = torch.stack([angles[head, pair].sin(), angles[head, pair].cos()])
            per_head[head, rotary[2 * pair : 2 * pair + 2], 2 * pair : 2 * pair + 2] = turn
    gain = (1 + 0.3 * draw(WIDTH // 2, seed=seed + 3)).repeat_interleave(2)
    return {
        "to_q.weight": draw(WIDTH, WIDTH, seed=seed + 4).double(), "to_q.bias": torch.zeros(WIDTH),
        "to_k.weight": per_head.flatten(0, 1) @ basis, "to_k.bias": torch.zeros(WIDTH),
        "to_v.weight": draw(WIDTH, 8, seed=seed + 5).double() @ basis, "to_v.bias": draw(32, seed=seed + 6),
        "norm_q.weight": torch.full((WIDTH,), 1.3), "norm_k.weight": gain,
        "to_out.weight": draw(WIDTH, WIDTH, seed=seed + 7), "to_out.bias": draw(WIDTH, seed=seed + 8),
    }, basis  # fmt: skip


def wan_by_formula(wan, x, config, eps, frames):
    """Wan's attention in float64, but for the rotation of the content channels; x [S, D]."""
    wan = {name: tensor.double() for name, tensor in wan.items()}

    def project(part):
        return x @ wan[f"to_{part}.weight"].T + wan[f"to_{part}.bias"]

    query, key = (project(part) / rms(project(part), eps) * wan[f"norm_{part}.weight"] for part in "qk")
    query, key, value = (y.unflatten(-1, (HEADS, HEAD)).transpose(0, 1) for y in (query, key, project("v")))
    rotary, content = channels(config)
    down, across = config.grid
    place = [(t, r, c) for t in range(frames) for r in range(down) for c in range(across)]
    # A head of 16: axes of 8, 4 and 4 channels, of which 2, 1 and 1 pairs turn.
    rates = [(0, 1.0), (0, 10000 ** (-2 / 8)), (1, 1.0), (2, 1.0)]
    angles = torch.tensor([[at[axis] * rate for axis, rate in rates] for at in place]).double()
    turned = [
        torch.view_as_complex(y[..., rotary].unflatten(-1, (-1, 2)).contiguous())
        * torch.polar(torch.ones_like(angles), angles)
        for y in (query, key)
    ]
    scores = query[..., content] @ key[..., content].transpose(1, 2)
    scores = scores + (turned[0] @ turned[1].conj().transpose(1, 2)).real
    out = (scores / HEAD**0.5).softmax(-1) @ value
    return out.transpose(0, 1).flatten(1) @ wan["to_out.weight"].T + wan["to_out.bias"]


def run(weights, config, x, frames):
    attention = LatentAttention(config).requires_grad_(False)
    attention.load_state_dict(weights)
    from vmla.transformer import VideoMLA

    window = all_frames(VideoMLA.rotary(config), frames)
    return attention.double()(x[None], x.new_empty(1, 0, config.entry_width), window)[0][0]


def test_what_the_rank_holds_is_kept_exactly():
    """Where latents of one size come from inputs of one size, as they do with no singular values in them."""
    config, frames = tiny_config(**EXACT), 3
    wan, basis = low_rank_wan()
    x = torch.nn.functional.normalize(draw(frames * config.tokens_per_frame, 8, seed=9).double(), dim=-1)
    x = 5 * x @ basis
    expected, choices = wan_by_formula(wan, x, config, config.eps, frames), Choices(whiten=False, balance=0.0)
    assert expected.std() > 0.1
    made, energy = convert_attention(wan, config, AttentionInputs.of(x, whiten=False), choices)
    assert all(abs(kept - 1) < 1e-9 for kept in energy.values())
    assert_close(run(made, config, x, frames), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("whiten", "stack"), [(True, "content"), (False, "content"), (True, "whole")])
def test_content_keys_and_values_are_those_of_wan_where_the_rank_suffices(whiten, stack, balance):
    """Whatever the tokens: up times down, with the norm left out."""
    config, (wan, _) = tiny_config(**EXACT), low_rank_wan(3)
    x, (_, content) = draw(40, WIDTH, seed=10).double(), channels(config)
    choices = Choices(whiten=whiten, balance=balance, key_weight=2.0, stack=stack)
    made, _ = convert_attention(wan, config, AttentionInputs.of(x, whiten=whiten), choices)
    key = x @ wan["to_k.weight"].T
    size = (key.square().mean(-1) + config.eps).sqrt()
    expected = wan["norm_k.weight"] * key * size.sum() / size.square().sum()
    latent = x @ made["down_kv.weight"].double().T
    keys = (latent @ made["up_k.weight"].double().T).unflatten(-1, (HEADS, -1))
    assert_close(keys, expected.unflatten(-1, (HEADS, -1))[..., content], rtol=1e-5, atol=1e-5)
    values = latent @ made["up_v.weight"].double().T
    assert_close(values, x @ wan["to_v.weight"].T, rtol=1e-5, atol=1e-5)


def test_energy_and_error_are_those_of_the_singular_values():
    matrix, x = draw(40, 24, seed=1).double(), draw(300, 24, seed=2).double()
    inputs = AttentionInputs.of(x @ torch.diag(torch.linspace(0.1, 3, 24).double()), whiten=True)
    parts = factor(matrix, 9, inputs, 0.3)
    whole = matrix @ inputs.moment @ matrix.T
    values = torch.linalg.eigvalsh(whole).flip(0)
    assert abs(parts.energy - float(values[:9].sum() / values.sum())) < 1e-9
    lost = matrix - parts.up @ parts.down
    share = (lost @ inputs.moment @ lost.T).trace() / whole.trace()
    assert abs(float(share) - (1 - parts.energy)) < 1e-9


def test_gains_are_a_least_squares_fit():
    latent, wanted = draw(50, 6, seed=1).double(), draw(50, 6, seed=2).double()
    unit = latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    fitted = [torch.linalg.lstsq(unit[:, i : i + 1], wanted[:, i : i + 1]).solution[0, 0] for i in range(6)]
    assert_close(norm_gain(latent, wanted, 1e-6), torch.stack(fitted), rtol=1e-9, atol=1e-12)


def test_an_absorbed_bias_is_the_best_matrix_without_one():
    weight, bias = draw(5, 8, seed=1).double(), draw(5, seed=2).double()
    x = draw(4000, 8, seed=3).double() + 0.5
    inputs = AttentionInputs.of(x, whiten=True)
    fitted = torch.linalg.lstsq(x, x @ weight.T + bias).solution.T
    # A ridge of a thousandth lies between them.
    assert_close(inputs.absorbed(weight, bias, Choices()), fitted, rtol=0, atol=5e-3)
    assert torch.equal(inputs.absorbed(weight, bias, Choices(biases="drop")), weight)


def converted(wan, **chosen):
    """Of Wan's weights at ranks that lose something."""
    config = tiny_config(kv_lora_rank=6, qk_rope_head_dim=8, q_lora_rank=14)
    inputs = AttentionInputs.of(draw(60, WIDTH, seed=10), whiten=True)
    return convert_attention(wan, config, inputs, Choices(**chosen))


def test_gains_that_are_dropped_are_gains_of_one():
    wan, _ = low_rank_wan()
    ones = {name: torch.ones(WIDTH) for name in ("norm_q.weight", "norm_k.weight")}
    dropped, plain, folded = converted(wan, gains="drop"), converted({**wan, **ones}), converted(wan)
    assert dropped[1] == plain[1] != folded[1]
    for name, tensor in plain[0].items():
        assert torch.equal(dropped[0][name], tensor), name
    assert not torch.equal(dropped[0]["up_k.weight"], folded[0]["up_k.weight"])


def test_latent_gains_touch_nothing_but_the_norms():
    wan, _ = low_rank_wan()
    (fitted, _), (ones, _) = converted(wan), converted(wan, latent_gains="one")
    for name, tensor in fitted.items():
        if "norm" in name:
            assert torch.equal(ones[name], torch.ones_like(tensor))
            assert not torch.equal(tensor, ones[name])
        else:
            assert torch.equal(ones[name], tensor), name


def test_of_a_whole_stack_content_is_kept_and_less_of_it():
    wan, _ = low_rank_wan()
    wan["to_v.weight"] = 0.1 * wan["to_v.weight"]  # so that keys decide
    (part, kept), (whole, less) = converted(wan), converted(wan, stack="whole")
    assert {name: tensor.shape for name, tensor in part.items()} == {n: t.shape for n, t in whole.items()}
    assert kept["keys and values"] > less["keys and values"]


def test_the_command_and_the_library_choose_alike():
    defaults = {parameter.name: parameter.default for parameter in main.commands["convert"].params}
    assert Choices(**{field.name: defaults[field.name] for field in fields(Choices)}) == Choices()


def test_random_keeps_size_and_wans_output_projection():
    config, (wan, _) = (
        tiny_config(num_attention_heads=2, attention_head_dim=48, kv_lora_rank=48, q_lora_rank=48),
        low_rank_wan(),
    )
    wan = {name: draw(*[96] * tensor.ndim, seed=i) for i, (name, tensor) in enumerate(wan.items())}
    x = draw(200, 96).double()
    made, _ = convert_attention(
        wan, config, AttentionInputs.of(x, whiten=True), Choices(init="random", seed=4)
    )
    again, _ = convert_attention(
        wan, config, AttentionInputs.of(x, whiten=True), Choices(init="random", seed=4)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in made.items())
    assert torch.equal(made["to_out.weight"], wan["to_out.weight"])
    assert torch.equal(made["to_out.bias"], wan["to_out.bias"])
    assert 0.9 < float((x @ made["down_kv.weight"].double().T).std()) < 1.1


# A whole model


def test_each_layer_sees_what_it_sees_in_the_model(tmp_path):
    model = tiny_model(layout="mha")
    source, seen = wan_source(tmp_path, model), []
    for block in model.blocks:
        block.attn1.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    calibration = CalibrationBatch.noised(draw(2, 3, 2, 4, 6), draw(2, 5, 10, seed=2), shift=3.0, seed=1)
    spec = CacheSpec.of(model.config)
    model(
        calibration.latents, calibration.timestep[:, None].expand(-1, 2), model.encode_text(calibration.text),
        spec.allocate(2, dtype=torch.float32), *window_at(spec, 0),
    )  # fmt: skip
    layers = list(layers_of(source, calibration))
    assert len(layers) == len(seen) == 2
    for layer, (inputs, outputs) in zip(layers, seen, strict=True):
        assert_close(layer.inputs, inputs, rtol=1e-4, atol=1e-5)
        assert_close(layer.outputs, outputs, rtol=1e-4, atol=1e-5)


def wan_source(folder, model):
    tensors = {name: tensor.contiguous() for name, tensor in published(model, wan=True).items()}
    save_file(tensors, folder / WEIGHTS)
    return open_source(folder / WEIGHTS, like=tiny_config())


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory):
    """A `debug` Wan model in Wan's own naming."""
    from kit.tiny.models import randomise

    from vmla.transformer import VideoMLA

    folder = tmp_path_factory.mktemp("wan")
    model = randomise(VideoMLA(named_config("debug", layout="mha")))
    save_file({n: t.contiguous() for n, t in published(model, wan=True).items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "num_heads": 2}))
    return folder


def command(*arguments):
    return CliRunner().invoke(main, ["convert", "--sizes", "debug", *map(str, arguments)])


def test_the_command_writes_a_checkpoint_and_a_report(wan_folder, tmp_path):
    result = command("--from", wan_folder, "-o", tmp_path / "mla", "--content-width", 24)
    assert result.exit_code == 0, result.output
    opened = open_checkpoint(tmp_path / "mla")
    model, config = opened.transformer(), opened.model_config()
    assert (config.layout, config.kv_lora_rank, config.q_lora_rank) == ("mla", 24, 32)
    original = open_source(wan_folder, like=named_config("debug")).model().state_dict()
    for name, tensor in model.state_dict().items():
        if ".attn1." not in name:
            assert torch.equal(tensor, original[name]), name
    report = json.loads((tmp_path / "mla" / "conversion.json").read_text())
    assert [layer["layer"] for layer in report["layers"]] == [0, 1]
    for layer in report["layers"]:
        assert layer["output error"]["spectral"] < layer["output error"]["random"]
        assert 0.3 < layer["energy"]["keys and values"] < 1
    assert not list(tmp_path.rglob(f"*{TEMPORARY_SUFFIX}"))


@pytest.mark.parametrize(
    ("factor", "complaint"),
    [
        (1e20, "what layer 1 computes is not finite"),
        (0.0, "norm_kv.weight of the result is not finite"),
    ],
)
def test_weights_that_lead_to_what_is_not_finite_are_refused(wan_folder, tmp_path, factor, complaint):
    tensors = load_file(wan_folder / WEIGHTS)
    spoilt = {name: t * factor if ".0.self_attn." in name else t for name, t in tensors.items()}
    save_file(spoilt, tmp_path / "wan.safetensors")
    result = command("--from", tmp_path / "wan.safetensors", "-o", tmp_path / "mla")
    assert result.exit_code == 2
    assert complaint in result.output.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["wan.safetensors"]


def test_a_layer_that_cannot_be_decomposed_is_named(wan_folder, tmp_path, monkeypatch):
    def fails(*_):
        raise torch.linalg.LinAlgError("linalg.svd: failed to converge")

    monkeypatch.setattr(convert, "convert_attention", fails)
    result = command("--from", wan_folder, "-o", tmp_path / "mla")
    assert result.exit_code == 2
    assert "layer 1 cannot be decomposed" in result.output.splitlines()[-1]


def test_wider_latents_lose_less(wan_folder, tmp_path):
    kept = []
    for content in (4, 16, 48):
        command("--from", wan_folder, "-o", tmp_path / str(content), "--content-width", content)
        layers = json.loads((tmp_path / str(content) / "conversion.json").read_text())["layers"]
        kept.append(sum(layer["energy"]["keys and values"] for layer in layers))
    assert kept[0] < kept[1] < kept[2]


def test_the_same_layout_is_copied(wan_folder, tmp_path):
    assert command("--from", wan_folder, "--layout", "mha", "-o", tmp_path / "mha").exit_code == 0
    ours = open_checkpoint(tmp_path / "mha").transformer().state_dict()
    original = open_source(wan_folder, like=named_config("debug")).model().state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in ours.items())


def test_a_dry_run_plans_without_weights():
    result = CliRunner().invoke(main, ["convert", "--from", "wan-1.3b", "--dry-run"])
    lines = dict(line.split(": ") for line in result.output.splitlines())
    # 1,418,996,800 is Wan2.1-T2V-1.3B; 115.8 M fewer follow from the paper's table of matrices.
    assert lines["parameters of the source"] == "1,418,996,800"
    assert 115e6 < 1_418_996_800 - int(lines["parameters of the result"].replace(",", "")) < 117e6
    assert float(lines["in memory"].split()[0]) < 16
    assert lines["cached per token and layer"] == "3072 numbers before, 224 after"
    result = CliRunner().invoke(main, ["convert", "--from", "wan-14b", "--dry-run"])
    assert result.exit_code == 0
    assert "parameters of the source: 14,288" in result.output


def test_a_dry_run_reads_the_shipped_model_where_sizes_have_its_name():
    result = CliRunner().invoke(main, ["convert", "--from", "sprites", "--layout", "mha", "--dry-run"])
    assert "cached per token and layer: 48 numbers before, 512 after" in result.output


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--balance", "2", "2.0 is not in the range 0<=x<=1"),
        ("--key-weight", "nan", "nan is not a finite number"),
        ("--strength", "inf", "inf is not in the range"),
    ],
)
def test_numbers_that_would_make_no_weights_are_refused_before_anything_is_read(option, value, complaint):
    result = CliRunner().invoke(main, ["convert", "--from", "wan-1.3b", "--dry-run", option, value])
    assert_one_line(result, complaint)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--from", "./nowhere", "-o", "x"], "./nowhere does not exist; give a folder, a file, or a hub id"),
        (["--from", "WAN"], "no output folder; give one with -o"),
        (["--from", "WAN", "-o", "HERE"], "exists already; remove it or choose another folder"),
        (["--from", "WAN", "-o", "x", "--query-width", "65"], "a rank of 65 is more than a matrix"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(wan_folder, tmp_path, arguments, complaint):
    places = {"WAN": str(wan_folder), "HERE": str(tmp_path), "x": str(tmp_path / "x")}
    result = command(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 2
    *said, error = result.output.splitlines()
    assert complaint in error
    assert all("makes no video" in line for line in said)  # what the result would lack is said before
    assert not (tmp_path / "x").exists()


def test_other_parts_of_a_pipeline_come_along(checkpoint, tmp_path):
    source = open_source(checkpoint)
    noise = CalibrationBatch.noise(source.config, clips=1, seed=0)
    Conversion(source, source.config, Choices(), noise).write(tmp_path / "x", print, pipeline=checkpoint)
    copy = open_checkpoint(tmp_path / "x")
    assert copy.codec().config == open_checkpoint(checkpoint).codec().config
    assert torch.equal(copy.text()(["a red star"]), open_checkpoint(checkpoint).text()(["a red star"]))
