"""VBench on finished videos, through VBench's own package.

    vmla-bench quality videos/*.mp4

Six of its dimensions and their plain mean, which is the paper's "overall" (arXiv 2605.30351, table 2) and not
the total that VBench itself reports. VBench takes a video's prompt from its file name: the videos are linked
under the prompts that their sidecars record.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from bench.harness.document import Record
from plugins.documents.json_file import read_json
from plugins.errors import UserError
from runtime.resume.sidecar import sidecar_path
from vmla.cli.command import OneLineCommand
from vmla.cli.options.device import choose_device, device_option, say_device
from vmla.cli.terminal import say

DIMENSIONS = (
    "aesthetic_quality", "background_consistency", "dynamic_degree", "imaging_quality", "motion_smoothness",
    "subject_consistency",
)  # fmt: skip
"""The columns of the paper's table."""
INSTALL = "vbench is not installed; install it with: pip install vbench (its weights download at first use)"
INSTALL_LONG = "vbench2_beta_long is not installed; it comes with VBench's repository, Vchitect/VBench"
LONG = {
    "sb_clip2clip_feat_extractor": "dino", "bg_clip2clip_feat_extractor": "clip",
    "clip_length_config": "clip_length_mix.yaml", "w_inclip": 1.0, "w_clip2clip": 0.0,
    "use_semantic_splitting": False, "dev_flag": False, "static_filter_flag": False,
}  # fmt: skip
"""VBench-Long's own settings as its eval_long.py gives them, which its class does not fill in."""


def prompt_of(video: Path) -> str:
    """The prompt in the video's sidecar, or else its name without a number at its end.

    Raises:
        UserError: if there is no such video.
    """
    if not video.is_file():
        raise UserError(f"no video {video}; give finished video files")
    sidecar = sidecar_path(video)
    if sidecar.is_file():
        return str(read_json(sidecar)["prompt"])
    return re.sub(r"-\d+$", "", video.stem)


def file_name(prompt: str) -> str:
    """VBench's file name for a video of `prompt`, before its number."""
    return re.sub(r"[/\0]", " ", prompt)[:200]


def link_as_vbench_expects(videos: tuple[Path, ...], folder: Path) -> dict[str, Path]:
    """Link each video into `folder` as `PROMPT-NUMBER.mp4`, numbered within its prompt."""
    links: dict[str, Path] = {}
    for video in videos:
        prompt = file_name(prompt_of(video))
        number = sum(name.rsplit("-", 1)[0] == prompt for name in links)
        name = f"{prompt}-{number}{video.suffix}"
        (folder / name).symlink_to(video.resolve())
        links[name] = video
    return links


def six_metric_mean(scores: dict[str, float]) -> float:
    """The plain mean of the six dimensions."""
    return sum(scores[name] for name in DIMENSIONS) / len(DIMENSIONS)


def check_installed(*, long: bool) -> str:
    """The name of VBench's package.

    Raises:
        UserError: without it, with how to install it.
    """
    package = "vbench2_beta_long" if long else "vbench"
    if find_spec(package) is None:
        raise UserError(INSTALL_LONG if long else INSTALL)
    return package


def evaluate(
    folder: Path, device: str, *, long: bool, dimensions: Sequence[str] = DIMENSIONS,
    prompts: Mapping[str, str] | None = None, standard: int = 0,
) -> dict[str, float]:  # fmt: skip
    """VBench's score of each dimension over the videos in `folder`.

    Args:
        folder: of videos, named as VBench expects.
        device: of torch.
        long: VBench-Long cuts each video into clips and scores these.
        dimensions: VBench's names of them.
        prompts: by file name; without them, VBench reads them off the names.
        standard: videos for each prompt of VBench's own list, which these are; 0 if they are others.

    Raises:
        UserError: without VBench, with how to install it.
    """
    package, name = check_installed(long=long), "VBenchLong" if long else "VBench"
    mode = "vbench_standard" if standard and not long else "custom_input"
    mode = ("long_vbench_standard" if standard else "long_custom_input") if long else mode
    module: Any = __import__(package)
    results = folder.parent / "results"
    info = Path(str(module.__file__)).parent / "VBench_full_info.json"
    judge = getattr(module, name)(choose_device(device), str(info), str(results))
    settings: dict[str, Any] = {"imaging_quality_preprocessing_mode": "longer"}
    if long:
        settings |= LONG | {"slow_fast_eval_config": str(info.parent / "configs" / "slow_fast_params.yaml")}
    if long and standard:
        settings["num_of_samples_per_prompt"] = standard
    if prompts is not None:
        settings["prompt_list"] = dict(prompts)
    judge.evaluate(
        videos_path=str(folder), name="videos", dimension_list=list(dimensions), mode=mode, **settings
    )
    found = json.loads((results / "videos_eval_results.json").read_text())
    return {dimension: float(found[dimension][0]) for dimension in dimensions}


@click.command("quality", cls=OneLineCommand)
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--long", is_flag=True, help="Use VBench-Long, for videos of more than five seconds.")
@device_option("Torch device that scores")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/quality.json).")  # fmt: skip
def main(videos: tuple[Path, ...], long: bool, device: str, output: Path | None) -> None:
    """Score VIDEOS with VBench's own package: six dimensions and the paper's mean of them."""
    device = str(say_device(device))
    record = Record("quality", output)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "videos"
        folder.mkdir()
        links = link_as_vbench_expects(videos, folder)
        scores = evaluate(folder, device, long=long)
    record.save(videos={name: str(video) for name, video in links.items()}, scores=scores)
    for name, score in scores.items():
        say(f"{name:>24}  {score:.4f}")
    mean = six_metric_mean(scores)
    say(f"{'six-metric mean':>24}  {mean:.4f}  (arXiv 2605.30351, table 2; not VBench's total)")
    record.finish(six_metric_mean=round(mean, 4), suite="VBench-Long" if long else "VBench")


if __name__ == "__main__":
    main()
