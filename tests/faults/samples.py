"""One whole file of every format that the commands read: of a tiny model and of videos made with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event

PROMPT = "a red star bouncing on a navy background"
RESULTS = Path(__file__).parents[2] / "bench" / "results"
MAP = """attention: "blocks.{layer}.attn"
heads: 2
parts:
  down_kv.weight: {tensor: kv_a.weight, rows: [0, 16]}
  norm_kv.weight: {tensor: norm.weight}
  up_k.weight: {tensor: kv_b.weight, rows: [0, 24], per_head: true}
  up_v.weight: {tensor: kv_b.weight, rows: [24, 56], per_head: true}
  rotary_k.weight: {tensor: kv_a.weight, rows: [16, 24], pairs: halved}
  down_q.weight: {tensor: q_a.weight}
  norm_q.weight: {tensor: null}
  up_q.weight: {tensor: q_b.weight}
  rotary_q.weight: {tensor: q_b.weight, rows: [0, 8], pairs: interleaved}
  to_out.weight: {tensor: o.weight}
  to_out.bias: {tensor: null}
ignore: [rope.freqs]
"""


def write_samples(folder: Path) -> None:
    """Write all of them; takes some seconds, and computes."""
    from kit.tiny.checkpoints import debug_checkpoint

    from vmla.world.caption import vocabulary

    debug_checkpoint(folder / "checkpoint", words=vocabulary(), trained_on="sprites")
    _videos(folder)
    _engine(folder / "engine", folder / "checkpoint")
    _published(folder)
    _clips(folder)
    _training(folder / "run")
    (folder / "prompts.yaml").write_text(f"0: {PROMPT}\n2: {{prompt: a blue ring, policy: reset}}\n")
    (folder / "prompts.jsonl").write_text(json.dumps({"at": 0, "prompt": PROMPT}))
    (folder / "videos.yaml").write_text(f"star: {PROMPT}\nring: {{prompt: a blue ring, seed: 3}}\n")
    (folder / "videos.jsonl").write_text(json.dumps({"name": "star", "prompt": PROMPT, "seed": 3}))
    (folder / "map.yaml").write_text(MAP)
    shutil.copytree(RESULTS, folder / "results")


def _videos(folder: Path) -> None:
    """`stopped.mp4` with its sidecar and its state, in the beginning of twelve chunks."""
    from kit.processes.sessions import StopAt

    from runtime.session.generate import make_videos
    from runtime.session.replay import new

    stop, order = Event(), new(PROMPT, str(folder / "checkpoint"), scale=1, chunks=12)
    make_videos({folder / "stopped.mp4": order}, telemetry=lambda output: StopAt(stop, 0), stop=stop)


def _engine(folder: Path, checkpoint: Path) -> None:
    """An engine that was never built: its manifest, and files that hold nothing."""
    from export.build import describe
    from export.engine.target import Host
    from export.settings import Settings
    from vmla.weights.checkpoint import open_checkpoint
    from vmla.weights.formats.files import hash_file

    folder.mkdir()
    files = {}
    for name in ("step.pt2", "prompt.pt2"):
        (folder / name).write_bytes(b"no program")
        files[name] = hash_file(folder / name)
    manifest = describe(open_checkpoint(checkpoint), Settings(backend="aoti", precision="fp32"))
    host = Host.here("cpu", ("torch",))
    replace(manifest, host=host, files=files, checkpoint=str(checkpoint)).write(folder)


def _published(folder: Path) -> None:
    """Weights as others publish them: `wan.safetensors`, `wan.pt`."""
    import torch
    from kit.references.wan import wan_transformer
    from kit.references.wan_folder import small_wan
    from safetensors.torch import load_file

    wan_transformer(small_wan()).save_pretrained(folder / "wan")
    tensors = load_file(folder / "wan" / "diffusion_pytorch_model.safetensors")
    shutil.copy(folder / "wan" / "diffusion_pytorch_model.safetensors", folder / "wan.safetensors")
    torch.save({"generator": tensors, "step": 3}, folder / "wan.pt")


def _clips(folder: Path) -> None:
    """`clips`: prompts as `vmla-train encode` leaves them."""
    from vmla.train.data.encode import encode

    (folder / "captions.txt").write_text(f"{PROMPT}\na blue ring\n")
    encode(
        folder / "captions.txt", str(folder / "checkpoint"), folder / "clips", lambda line: None,
        frames=6, shard=2, device="cpu", negative="blurred",
    )  # fmt: skip


def _training(folder: Path) -> None:
    """A run of the `debug` recipe after two of four steps."""
    from vmla.train.recipes.from_scratch import pretraining_recipe
    from vmla.train.run import TrainingRun

    TrainingRun(pretraining_recipe("debug"), folder, lambda line: None, stop_after=2).until("codec")
