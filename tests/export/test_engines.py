"""Engines of every backend that runs here, against the eager model and through the commands."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.passes import pass_inputs

from export.backends.registry import BACKENDS
from export.engine.manifest import NAME, Manifest
from plugins.errors import UserError
from runtime.cli.export import main as export_main
from runtime.cli.run import main as run_main
from runtime.engines.compiled import open_engine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import rollout
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"


def command(group, *arguments):
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def copy_of(folder, place):
    return shutil.copytree(folder, place / "engine")


@pytest.mark.parametrize("number", [0, 1, 2, 9])
def test_a_pass_equals_the_model_with_poison_in_empty_slots(engine, eager, number):
    inputs = StepInputs(**pass_inputs(eager.config, number, seed=number))
    for got, want in zip(engine.step(inputs), eager.step(inputs), strict=True):
        assert want.abs().max() > 0.1
        assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_prompts_are_encoded_as_by_the_model(engine, eager):
    got, want = engine.encode_prompt([PROMPT]), eager.encode_prompt([PROMPT])
    assert want.abs().max() > 0.1
    assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_rollout_equals_the_model_chunk_by_chunk(engine, eager, checkpoint):
    sampler = open_checkpoint(checkpoint).sampler()
    made, wanted = (
        rollout(one, NoDecoder(), FixedPrompts(PROMPT), sampler, seeds=[3], chunks=5)
        for one in (engine, eager)
    )
    for got, want in zip(made, wanted, strict=True):
        assert_close(got.frames, want.frames, rtol=1e-4, atol=1e-4)


def test_its_results_stay_when_it_runs_again(engine, eager):
    kept = engine.step(StepInputs(**pass_inputs(eager.config, 2, seed=1)))
    first = [tensor.clone() for tensor in kept]
    engine.step(StepInputs(**pass_inputs(eager.config, 3, seed=2)))
    for tensor, before in zip(kept, first, strict=True):
        assert torch.equal(tensor, before)


def test_strides_do_not_matter(engine, eager):
    inputs = StepInputs(**pass_inputs(eager.config, 2, seed=4))
    twisted = inputs._replace(cache=inputs.cache.transpose(2, 3).contiguous().transpose(2, 3))
    for got, want in zip(engine.step(twisted), engine.step(inputs), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cache", lambda x: x[:, :, 1:]),
        ("text_kv", lambda x: x.double()),
        ("slot_index", lambda x: x.long()),
        ("timestep", lambda x: x[0]),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(engine, eager, name, change):
    inputs = pass_inputs(eager.config, 2)
    with pytest.raises(ValueError, match=f"^{name} is "):
        engine.step(StepInputs(**{**inputs, name: change(inputs[name])}))


def test_a_video_is_made_of_it(engine_folder, tmp_path):
    output = tmp_path / "star.mp4"
    result = command(
        run_main, "--prompt", PROMPT, "--engine", engine_folder, "--chunks", 2, "-o", output, "--scale", 1
    )
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "star.mp4.json").read_text())
    assert told["complete"] is True
    manifest = Manifest.read(engine_folder)
    assert (told["engine"], told["precision"]) == (manifest.backend, "fp32")
    assert told["dtype"] == "float32"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "bfloat16"], "built for dtype float32, not bfloat16; leave --dtype out"),
        (["--device", "cuda"], "built for device cpu, not cuda; leave --device out"),
        (["--layout", "mha"], "has layout mla"),
    ],
)
def test_what_an_engine_was_not_built_for_is_refused(engine_folder, options, said):
    result = command(run_main, "--prompt", PROMPT, "--engine", engine_folder, "-o", "null", *options)
    assert result.exit_code == 2
    assert said in result.output


def test_a_checkpoint_that_it_was_not_built_from_is_refused(engine_folder, tmp_path):
    other = debug_checkpoint(tmp_path / "other", seed=1)
    result = command(
        run_main, "--prompt", PROMPT, "--engine", engine_folder, "--checkpoint", other, "-o", "null"
    )
    assert result.exit_code == 2
    assert "model_hash" in result.output


def test_a_damaged_file_is_refused_before_it_is_loaded(engine_folder, checkpoint, tmp_path):
    folder = copy_of(engine_folder, tmp_path)
    name = next(name for name in Manifest.read(folder).files if name.startswith("step"))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=re.escape(f"{name}: the file is damaged")):
        open_engine(folder, open_checkpoint(checkpoint))
    (folder / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{name}: the file is missing")):
        open_engine(folder, open_checkpoint(checkpoint))


def test_what_is_loaded_is_what_was_hashed(engine_folder, checkpoint, tmp_path, monkeypatch):
    """Whoever replaces the files in between gains nothing: nothing is opened by its path a second time."""
    folder, places = copy_of(engine_folder, tmp_path), []
    backend = BACKENDS[Manifest.read(folder).backend]
    load = type(backend).load

    def swapped(self, place, name, manifest):
        for path in folder.iterdir():
            path.write_bytes(b"somebody else's program")
        places.append(place)
        return load(self, place, name, manifest)

    monkeypatch.setattr(type(backend), "load", swapped)
    with open_engine(folder, open_checkpoint(checkpoint)) as engine:
        assert engine.encode_prompt([PROMPT]).isfinite().all()
    assert len(places) == 2 and folder not in places
    assert not any(place.exists() for place in places)


def test_a_link_out_of_the_folder_is_refused(engine_folder, checkpoint, tmp_path):
    folder = copy_of(engine_folder, tmp_path)
    name = next(name for name in Manifest.read(folder).files if name.startswith("step"))
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=re.escape(f"cannot read {folder / name}")):
        open_engine(folder, open_checkpoint(checkpoint))


def test_a_program_without_a_hash_is_refused(engine_folder, checkpoint, tmp_path):
    folder = copy_of(engine_folder, tmp_path)
    manifest = Manifest.read(folder)
    name = BACKENDS[manifest.backend].files("step", manifest)[-1]
    rest = {key: digest for key, digest in manifest.files.items() if key != name}
    replace(manifest, files=rest).write(folder)
    with pytest.raises(UserError, match=re.escape(f"{name}: its manifest has no hash of it")):
        open_engine(folder, open_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "bf16"}, "cache: it is not that of the model in bf16"),
        ({"precision": "int3"}, "precision: there is none called int3"),
        ({"batch": 2}, "programs: they take and give not"),
    ],
)
def test_a_manifest_that_lies_is_refused(engine_folder, checkpoint, tmp_path, changes, said):
    folder = copy_of(engine_folder, tmp_path)
    replace(Manifest.read(folder), **changes).write(folder)
    with pytest.raises(UserError, match=re.escape(said)):
        open_engine(folder, open_checkpoint(checkpoint), batch=changes.get("batch", 1))
    values = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**values, "precision": "fp32", "batch": 1}))
    with pytest.raises(UserError, match="was changed after the engine was built; build the engine again"):
        open_engine(folder, open_checkpoint(checkpoint))


def test_verify_measures_every_chunk(engine_folder):
    result = command(export_main, "verify", engine_folder, "--chunks", 3)
    assert result.exit_code == 0, result.output
    errors = [float(error) for error in re.findall(r"^chunk \d: (\S+)$", result.output, re.MULTILINE)]
    assert len(errors) == 3
    assert 0 <= max(errors) < 1e-4
    assert re.search(r"^one pass, velocity: \S+$", result.output, re.MULTILINE)
    assert f"worst chunk: {errors.index(max(errors))}" in result.output


def test_verify_fails_for_an_engine_of_other_weights(engine_folder, tmp_path):
    """One that claims to be of a checkpoint and is not."""
    folder = copy_of(engine_folder, tmp_path)
    other = open_checkpoint(debug_checkpoint(tmp_path / "other", seed=1))
    replace(Manifest.read(folder), model_hash=other.model_hash()).write(folder)
    result = command(export_main, "verify", folder, "--checkpoint", other.folder, "--chunks", 2)
    assert result.exit_code == 1
    assert "NOT met" in result.output
    assert re.search(r"worst chunk: \d with", result.output)
