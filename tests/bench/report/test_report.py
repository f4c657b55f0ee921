"""The report, its plots and comparisons; spectra and drift curves; VBench's edges."""

import json
import re
import sys
import types
from base64 import b64decode
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kit.files.results import documents
from kit.refusals import assert_one_line
from kit.tiny.checkpoints import debug_checkpoint

from bench.cli import main as vmla_bench
from bench.harness.document import read_document
from bench.quality.drift import WINDOW, chunk_curve, curve, drift, drift_of, frames_of, measures
from bench.quality.vbench import link_as_vbench_expects
from bench.report.comparison import FigureChange
from bench.report.elements.axis import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, short
from bench.report.elements.bars import Bars, Ratios
from bench.report.elements.engine_filter import choice
from bench.report.elements.lines import Lines
from bench.report.figures import Figure, figures
from bench.report.readme import TABLES, render
from bench.studies.spectrum import effective_rank, energy_kept, singular_of_product
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu


def report(folder, new, old=(), *more):
    arguments = [word for path in old for word in ("--against", str(path))]
    words = ["report", *map(str, new), *arguments, *more, "-o", str(folder / "report")]
    return CliRunner().invoke(vmla_bench, words)


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    paths = documents(tmp_path)
    done = report(tmp_path, paths)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[-1])["results"] == len(paths)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "a &lt; b" in page
    assert "<script" not in page and not re.findall(r"""(?:src|href|url\()=?["']?(?!#)(?!data:)[\w/]""", page)
    parts = re.findall(r"<section id=(part-\d+)>", page)
    assert re.findall(r"href='#(part-\d+)'", page) == parts and len(parts) == len(paths)
    for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(plot)
    assert len(re.findall("<svg", page)) >= 8
    summary = (tmp_path / "report" / "report.md").read_text()
    assert summary.count("`vmla-bench ") == len(paths)


def test_videos_and_sheets_are_inside_the_page(tmp_path):
    (result,) = [path for path in documents(tmp_path) if path.stem == "grades"]
    video, sheet = tmp_path / "a<b.mp4", tmp_path / "sheet.png"
    video.write_bytes(b"video"), sheet.write_bytes(b"sheet")
    done = report(tmp_path, [result], (), "--media", str(video), "--media", str(sheet))
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report" / "report.html").read_text()
    held = re.findall(r"src='data:([a-z0-9/]+);base64,([^']*)'", page)
    assert [(kind, b64decode(data)) for kind, data in held] == [
        ("video/mp4", b"video"),
        ("image/png", b"sheet"),
    ]
    assert "a&lt;b.mp4" in page
    for path, said in ((tmp_path / "none.mp4", "is missing"), (result, "shows no .json files")):
        assert_one_line(report(tmp_path, [result], (), "--media", str(path)), said)


def test_the_page_can_be_narrowed_to_an_engine(tmp_path):
    (tmp_path / "old").mkdir()
    new, old = (
        [path for path in documents(folder, speed=speed) if path.stem == "engines"]
        for folder, speed in ((tmp_path, 10.0), (tmp_path / "old", 12.0))
    )
    assert report(tmp_path, new, old).exit_code == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert re.findall(r'id="engine-\d"(?: checked)?> ([^<]+)<', page) == ["all engines", "eager-mla", "onnx"]
    for element in ("tr", "g"):
        assert f'#engine-1:checked) {element}[data-engine]:not([data-engine^="eager-mla "])' in page
    belongs = re.findall(r'<(tr|g)[^>]* data-engine="([^"]*)"', page)
    assert ("g", "eager-mla fp32 ") in belongs and ("tr", "onnx bf16 ") in belongs
    assert ("tr", "eager-mla fp32, frames/s ") in belongs and ("g", "eager-mla fp32, frames/s ") in belongs


@pytest.mark.parametrize("name", ['a"]{}', "</style><script>", "ü b"])
def test_an_engine_of_any_name_stays_a_name(name):
    made = choice(["eager", name])
    assert made.count("<style>") == made.count("</style>") == 1 and "<script" not in made
    assert all(rule.count('"') == 2 for rule in re.findall(r"\[data-engine\^=(.*?)\]\)", made))


def test_what_became_worse_is_marked(tmp_path):
    (tmp_path / "old").mkdir()
    new, old = documents(tmp_path, speed=9.0), documents(tmp_path / "old", speed=10.0)
    done = report(tmp_path, new[:1], old)
    assert json.loads(done.output.splitlines()[-1])["worse"] == ["engines: debug: eager-mla fp32, frames/s"]
    assert 'class="worse"' in (tmp_path / "report" / "report.html").read_text()
    same = report(tmp_path, old[:1], old)
    assert json.loads(same.output.splitlines()[-1])["worse"] == []


def test_a_change_within_the_noise_is_none():
    def verdict(old, new, **kind):
        a, b = (Figure(value=value, **kind) for value in (old, new))
        return FigureChange(name="x", old=a, new=b).verdict

    assert verdict(100, 92, spread=0.02) == "same" and verdict(100, 90, spread=0.02) == "worse"
    assert verdict(100, 96) == "same" and verdict(100, 94) == "worse" and verdict(100, 110) == "better"
    assert verdict(1.0, 1.2, more_is_better=False) == "worse"


def test_other_machines_and_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "old").mkdir()
    new, old = documents(tmp_path)[:1], documents(tmp_path / "old")[:1]
    document = json.loads(old[0].read_text())
    document["machine"]["hardware"] = "Another, 9 cores"
    old[0].write_text(json.dumps(document))
    assert report(tmp_path, new, old, "--across-machines").exit_code == 0
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"kind": "engines", "version": 99, "machine": {}}')
    for done, said in (
        (report(tmp_path, new, old), "--across-machines"),
        (report(tmp_path, [wrong]), "version 99"),
        (report(tmp_path, [tmp_path / "none.json"]), "no results file"),
    ):
        assert done.exit_code == 2 and said in done.output
        assert len(done.output.strip().splitlines()) == 1


def test_plots_place_what_they_show():
    plot = Lines(title="t", x="x", y="y", series={"a": [(0.0, 0.0), (1.0, 2.0)]}, zero=True)
    ((first, last),) = [
        line.attrib["points"].split()
        for line in ElementTree.fromstring(plot.text())
        if "polyline" in line.tag
    ]
    left, bottom = (float(v) for v in first.split(","))
    right, top = (float(v) for v in last.split(","))
    assert (left, bottom) == (LEFT, HEIGHT - BOTTOM)
    assert right == WIDTH - plot.right
    assert TOP < top < TOP + 0.1 * (HEIGHT - BOTTOM - TOP)
    for log in (False, True):
        one = Lines(title="<&>", x="x", y="y", series={"one": [(5.0, 5.0)]}, log=log)
        ElementTree.fromstring(one.text())
    ElementTree.fromstring(Bars(title="none", values=[], unit="s").text())


def test_an_older_run_lies_over_the_new_one():
    new = Lines(title="t", x="x", y="y", series={"a": [(0.0, 1.0), (1.0, 1.0)]})
    old = Lines(title="t", x="x", y="y", series={"a": [(0.0, 3.0), (2.0, 3.0)]})
    lines = [line for line in ElementTree.fromstring(new.beside(old).text()) if "polyline" in line.tag]
    assert [line.attrib.get("stroke-dasharray") for line in lines] == ["4 3", None]
    assert len({line.attrib["stroke"] for line in lines}) == 1
    heights = [float(line.attrib["points"].split(",")[1].split()[0]) for line in lines]
    assert heights[0] < heights[1]  # three is above one
    assert new.beside(None) == new
    bars = Bars(title="t", values=[("a", 1.0, None), ("b", 2.0, 0.1)])
    both = bars.beside(Bars(title="t", values=[("a", 4.0, None), ("c", 9.0, None)])).text()
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="15"', both)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=1e-3)
    assert both.count("v19") == 1 and "old value" in both and "old value" not in bars.text()


def test_ratios_lie_about_one():
    values = [("up", 2.0, 0.1, "better"), ("down", 0.5, 0.0, "worse"), ("flat", 1.0, 2.0, "same")]
    marks = [*ElementTree.fromstring(Ratios(title="t", values=values).text()).iter()]
    up, down, flat = (float(mark.attrib["cx"]) for mark in marks if mark.tag.endswith("circle"))
    assert up - flat == pytest.approx(flat - down, abs=0.2) and up > flat
    ElementTree.fromstring(Ratios(title="t", values=[("turned", -3.0, 0.0, "worse")]).text())


@pytest.mark.parametrize(
    "value, said",
    [(0.0, "0"), (0.25, "0.25"), (1234.0, "1234"), (12_500, "12.5k"), (-4e6, "-4M"), (1.5e9, "1.5G")],
)
def test_numbers_at_the_axes_are_short(value, said):
    assert short(value) == said


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(1.0, 2.0), (-3.0, -1.0), (0.5, 0.5), (-1.0, 4.0), (1e9, 1e9 + 1)])
def test_no_curve_lies_on_the_frame(values, log):
    if log and min(values) <= 0:
        values = tuple(abs(v) for v in values)
    text = Lines(title="t", x="x", y="y", series={"a": list(enumerate(values, 1))}, log=log).text()
    (line,) = [line for line in ElementTree.fromstring(text) if "polyline" in line.tag]
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert all(TOP + 5 < height < HEIGHT - BOTTOM - 5 for height in heights)


def test_effective_rank_counts_energy():
    singular = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert [effective_rank(singular, share) for share in (9 / 14, 0.65, 0.93, 0.99)] == [1, 2, 3, 3]
    assert energy_kept(singular, 2) == pytest.approx(13 / 14)
    left, right = torch.randn(40, 6), torch.randn(6, 30)
    expected = torch.linalg.svdvals((left @ right).double())[:6]
    assert torch.allclose(singular_of_product(left, right), expected, rtol=1e-5)


def test_spectra_of_both_layouts(tmp_path):
    folders = [debug_checkpoint(tmp_path / layout, layout=layout) for layout in ("mha", "mla")]
    path = tmp_path / "spectrum.json"
    done = CliRunner().invoke(vmla_bench, ["spectrum", *map(str, folders), "-o", str(path)])
    assert done.exit_code == 0, done.output
    heads, latent = read_document(path)["checkpoints"]
    config = open_checkpoint(folders[0]).model_config()
    assert {row["full_rank"] for row in heads["layers"]} == {config.inner_dim}
    assert {row["full_rank"] for row in latent["layers"]} == {config.kv_lora_rank}
    assert {row["matrix"] for row in latent["layers"]} == {"stacked", "composed"}
    for row in (*heads["layers"], *latent["layers"]):
        ranks = list(row["ranks"].values())
        assert ranks == sorted(ranks) and ranks[-1] <= row["full_rank"]
    assert report(tmp_path, [path]).exit_code == 0


def test_measures_of_pictures_whose_measures_are_known():
    red = torch.zeros(4, 3, 8, 8)
    red[:, 0] = 1
    assert measures(red) == pytest.approx({"saturation": 1, "luma": 0.2126, "sharpness": 0, "motion": 0})
    blink = torch.zeros(4, 3, 8, 8)
    blink[1::2] = 1
    assert measures(blink)["motion"] == pytest.approx(1)
    ramp = (torch.arange(8.0) / 8).expand(4, 3, 8, 8)
    assert measures(ramp)["sharpness"] == pytest.approx(1 / 8)


def test_a_fading_video_drifts_and_a_still_one_does_not(tmp_path):
    fading = [torch.full((3, 8, 8), 1 - n / (8 * WINDOW)) for n in range(4 * WINDOW)]
    points = curve(fading, None)
    assert [point["second"] for point in points] == [4, 8, 12, 16]
    assert drift(points)["luma"] == pytest.approx(-0.4, abs=0.02)
    assert drift(curve([torch.full((3, 8, 8), 0.5)] * 2 * WINDOW, None))["luma"] == 0
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=16)
        stream.width = stream.height = 64
        for _ in range(WINDOW):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 128, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert next(frames_of(path, 8)).shape == (3, 8, 8)
    (point,) = drift_of(path, 8, prompt=None)
    assert point["luma"] == pytest.approx(0.5, abs=0.02)


def test_chunk_times_are_differences_of_the_events():
    events = [
        {"seconds": 0.5, "frames": 12, "denoise_seconds": 0.4, "decode_seconds": 0.1, "resident_bytes": 7},
        {"seconds": 0.75, "frames": 24, "denoise_seconds": 0.2, "decode_seconds": 0.0, "resident_bytes": 8},
    ]
    points = chunk_curve(events)
    assert [point["chunk_seconds"] for point in points] == [0.5, 0.25]
    assert [point["second"] for point in points] == [0.75, 1.5]


def test_vbench_that_is_not_there_is_named(tmp_path):
    video = tmp_path / "a cat-3.mp4"
    video.touch()
    done = CliRunner().invoke(vmla_bench, ["quality", str(video), "-o", str(tmp_path / "q.json")])
    assert done.exit_code == 2 and "pip install vbench" in done.output
    assert len(done.output.strip().splitlines()) == 1
    none = CliRunner().invoke(vmla_bench, ["quality", str(tmp_path / "none.mp4")])
    assert none.exit_code == 2 and "no video" in none.output


def test_vbench_gets_names_that_it_reads_prompts_from(tmp_path, monkeypatch):
    """A stand-in for VBench's class, with the face that its package documents."""
    seen = {}

    class Stand:
        def __init__(self, device, info, results):
            self.results = results

        def evaluate(self, *, videos_path, name, dimension_list, mode, **settings):
            from pathlib import Path

            seen.update(names=sorted(p.name for p in Path(videos_path).iterdir()), mode=mode)
            Path(self.results).mkdir()
            scores = {dimension: [0.1 * n, []] for n, dimension in enumerate(dimension_list)}
            (Path(self.results) / f"{name}_eval_results.json").write_text(json.dumps(scores))

    module = types.ModuleType("vbench")
    module.VBench, module.__file__, module.__spec__ = Stand, str(tmp_path / "vbench.py"), object()
    monkeypatch.setitem(sys.modules, "vbench", module)
    first, second = tmp_path / "x.mp4", tmp_path / "a dog-7.mp4"
    for video in (first, second):
        video.touch()
    (tmp_path / "x.mp4.json").write_text('{"prompt": "a red/blue star"}')
    path = tmp_path / "quality.json"
    done = CliRunner().invoke(vmla_bench, ["quality", str(first), str(second), "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert seen == {"names": ["a dog-0.mp4", "a red blue star-0.mp4"], "mode": "custom_input"}
    assert read_document(path)["summary"]["six_metric_mean"] == pytest.approx(0.25)


def test_links_are_numbered_within_a_prompt(tmp_path):
    videos = []
    for number in (1, 2):
        videos.append(tmp_path / f"a cat-{number}.mp4")
        videos[-1].touch()
    (tmp_path / "links").mkdir()
    assert list(link_as_vbench_expects(tuple(videos), tmp_path / "links")) == ["a cat-0.mp4", "a cat-1.mp4"]


def test_a_table_without_results_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.report.readme.RESULTS", tmp_path)
    text = "".join(f"<!-- results: {name} -->\n<!-- end -->\n" for name in TABLES)
    missing = render(text)
    for block in TABLES.values():
        assert f"not measured yet: `{block.command} -o bench/results/{block.file}`" in missing
    for path in documents(tmp_path):
        for block in TABLES.values():
            if block.file.startswith(path.stem):
                path.with_name(block.file).write_text(path.read_text())
    made = render(text)
    assert "| forcing | 2.00 | 9,000 | 50% | 1.0 | 2.0 |" in made and "out of memory" in made
    assert "| expand, triton | bfloat16 | 9,360 | 0.070 | 139 | 0.14 | 1.0e-06 |" in made
    assert "13.7 times smaller" in made and "| eager-mla fp32 | 10.0 | (1.00 ± 0.01)" in made
    assert figures({"kind": "nothing"}) == {}
