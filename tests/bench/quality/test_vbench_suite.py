"""VBench's protocol up to the call: its prompts, its names, what is made again, and what is asked of it."""

import json
import sys

import av
import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from bench.cli import main

pytestmark = pytest.mark.cpu

RED, BLUE, LONG = "a red star", "a blue ring, resting", "a person is dancing"
LIST = [
    {"prompt_en": RED, "dimension": ["subject_consistency", "motion_smoothness"]},
    {"prompt_en": LONG, "dimension": ["human_action"]},
    {"prompt_en": BLUE, "dimension": ["aesthetic_quality"]},
    {"prompt_en": RED, "dimension": ["imaging_quality"]},
]
STAND_IN = """
import json, pathlib
class {name}:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.info, self.output = device, full_info_dir, pathlib.Path(output_path)
    def evaluate(self, videos_path, name, dimension_list, mode, **settings):
        self.output.mkdir(parents=True, exist_ok=True)
        seen = sorted(path.name for path in pathlib.Path(videos_path).iterdir())
        told = dict(settings, videos=seen, mode=mode, dimensions=dimension_list, info=self.info)
        (self.output / "told.json").write_text(json.dumps(told))
        scores = {{dimension: [0.5, []] for dimension in dimension_list}}
        (self.output / f"{{name}}_eval_results.json").write_text(json.dumps(scores))
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins for `vbench` and `vbench2_beta_long`, with a list of prompts."""
    for package, name in (("vbench", "VBench"), ("vbench2_beta_long", "VBenchLong")):
        folder = tmp_path / "site" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(STAND_IN.format(name=name))
        (folder / "VBench_full_info.json").write_text(json.dumps(LIST))
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    for package in ("vbench", "vbench2_beta_long"):
        sys.modules.pop(package, None)


def bench(folder, checkpoint, *more):
    asked = ("vbench", folder, "--checkpoint", checkpoint, "--seconds", 0.75, "-o", folder / "vbench.json")
    return CliRunner().invoke(main, [str(a) for a in (*asked, *more)])


def test_its_prompts_become_its_layout_and_its_class_is_called(packages, checkpoint, tmp_path):
    folder = tmp_path / "suite"
    result = bench(folder, checkpoint, "--samples", 2)
    assert result.exit_code == 0, result.output
    names = sorted(f"{prompt}-{number}.mp4" for prompt in (RED, BLUE) for number in (0, 1))
    told = json.loads((folder / "results" / "told.json").read_text())
    assert told["videos"] == names
    assert told["mode"] == "vbench_standard"
    assert told["info"] == str(packages / "vbench" / "VBench_full_info.json")
    assert "prompt_list" not in told
    for name in names:
        with av.open(str(folder / "videos" / name)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 12
        sidecar = json.loads((folder / "made" / f"{name}.json").read_text())
        assert (sidecar["prompt"], sidecar["seed"]) == (name[:-6], int(name[-5]))
    document = json.loads((folder / "vbench.json").read_text())
    assert document["summary"] == {"videos": 4, "suite": "VBench", "six_metric_mean": 0.5}
    again = bench(folder, checkpoint, "--samples", 2, "--long")
    assert again.exit_code == 0, again.output
    assert "video 1 of" not in again.output  # nothing is made twice
    told = json.loads((folder / "results" / "told.json").read_text())
    assert (told["mode"], told["num_of_samples_per_prompt"]) == ("long_vbench_standard", 2)
    assert told["clip_length_config"] == "clip_length_mix.yaml"
    other = bench(folder, checkpoint, "--samples", 2, "--seed", 3)
    assert_one_line(other, "suite.json", "seed")


def test_prompts_of_ones_own_are_told_by_name(packages, checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{RED}/{BLUE}\n\n{RED}/{BLUE}\n")
    more = ("--prompts", tmp_path / "prompts.txt", "--samples", 1, "--dimensions", "dynamic_degree")
    result = bench(tmp_path / "own", checkpoint, *more)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "own" / "results" / "told.json").read_text())
    assert told["prompt_list"] == {f"{RED} {BLUE}-0.mp4": f"{RED}/{BLUE}"}
    assert (told["mode"], told["dimensions"]) == ("custom_input", ["dynamic_degree"])
    assert json.loads((tmp_path / "own" / "prompts.json").read_text()) == told["prompt_list"]
    assert "six_metric_mean" not in result.output


def test_what_is_missing_or_does_not_exist_is_said_before_a_video_is_made(checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{RED}\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "alike.txt").write_text(f"{'a' * 200}b\n{'a' * 200}c\n")
    own = ("--prompts", tmp_path / "prompts.txt")
    for more, *said in (
        ((), "pip install vbench"), (own, "pip install vbench"), ((*own, "--long"), "vbench2_beta_long"),
        (("--only-videos",), "--prompts FILE"), (("--dimensions", "beauty"), "no such dimension: beauty"),
        ((*own, "--dimensions", "color"), "color on its own prompts alone"),
        (("--prompts", tmp_path / "empty.txt", "--only-videos"), "holds no prompts"),
        (("--prompts", tmp_path / "alike.txt", "--only-videos"), "begin alike"),
    ):  # fmt: skip
        assert_one_line(bench(tmp_path / "suite", checkpoint, *more), *said)
    assert not (tmp_path / "suite").exists()
    made = bench(tmp_path / "suite", checkpoint, *own, "--samples", 1, "--only-videos")
    assert made.exit_code == 0, made.output
    assert [path.name for path in (tmp_path / "suite" / "videos").iterdir()] == [f"{RED}-0.mp4"]
