"""The README's one table: a CPU's and a GPU's figures, from several results files at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.harness.document import machine_name
from bench.report.elements.engines_table import ratio
from bench.report.gpu_files import NEWEST, gpu_documents, lacking, newest_with
from plugins.documents.json_file import read_json
from runtime.engines.block_compiler import REPAYING_CHUNKS
from vmla.world.grader.grade import QUESTIONS

FILES = {
    "rollout": "rollout-sprites.json",
    "grades": "grades-sprites.json",
    "engines": "engines-sprites.json",
    "layouts": "layouts-sprites.json",
    "memory": "memory-wan.json",
}
"""The results file of each part of the table but the GPU's speed, in `bench/results`."""
FLOAT32 = 4
"""Bytes of a number that the shipped model caches."""
NOT_MEASURED = "not measured"

Documents = dict[str, dict[str, Any]]
Rows = list[tuple[str, str, str]]


def summary_table(results: Path) -> list[str]:
    """The lines of the table; where a results file is missing, one line that names it."""
    missing = [file for file in FILES.values() if not (results / file).exists()]
    gpu_run = newest_with(gpu_documents(results), "chunk", "compile")
    if missing or gpu_run is None:
        missing += [NEWEST] if gpu_run is None else []
        return [f"not measured yet: {', '.join(missing)} in bench/results"]
    read = {"gpu": gpu_run, **{name: read_json(results / file) for name, file in FILES.items()}}
    cpu, gpu = machine_name(read["rollout"]), read["gpu"]["machine"]["gpu"]
    return [
        f"| | CPU: {cpu} | GPU: one {gpu} |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in [*_speed(read), *_size(read), *_quality(read)]),
        *_note(read["engines"]),
    ]


def _note(engines: dict[str, Any]) -> list[str]:
    """The note on rows that are made from `engines` alone."""
    if "note" not in engines:
        return []
    return ["", f"Compiled engines, and latent against per-head, on the CPU. {engines['note']}"]


def _speed(read: Documents) -> Rows:
    whole, engines = read["rollout"], _by_name(read["engines"])
    gpu = {
        name: row
        for measured in ("chunk", "compile")
        for name, row in _by_name(read["gpu"][measured]).items()
    }
    latent, compiled = gpu["eager-mla bf16"], gpu["compile bf16"]
    return [
        ("what runs", "the shipped model, 64 x 64", "the size of Wan2.1-1.3B, 832 x 480, random weights"),
        (
            "what is timed",
            "everything, from the command to the file",
            "the denoiser with its clean pass, in CUDA graphs, without the decoder",
        ),
        ("measured", f"{whole['date']}", _when(read["gpu"])),
        (
            "speed",
            f"{whole['frames_per_second']:.0f} frames/s, {whole['times_real_time']:.1f} times real time",
            f"{latent['frames_per_second']:.1f} frames/s; {compiled['frames_per_second']:.1f} with "
            f"`--compile`, the default from {REPAYING_CHUNKS:,} chunks on",
        ),
        (
            "latent cache, times as fast as per-head",
            _inverse(engines["eager-mha fp32"]),
            ratio(latent),
        ),
        ("three minutes of video", f"{whole['wall_seconds']:.0f} s", NOT_MEASURED),
        ("first frame in the file", f"{whole['first_frame_seconds']:.1f} s", NOT_MEASURED),
        (
            "compiled engine, times as fast as PyTorch",
            f"AOTInductor {ratio(engines['aoti fp32'])}, ONNX {ratio(engines['onnx fp32'])}",
            f"AOTInductor {NOT_MEASURED}; TensorRT never run",
        ),
    ]


def _size(read: Documents) -> Rows:
    rollout, caches = read["rollout"], read["memory"]["caches"]
    small = {one["layout"]: one["cached_numbers"] * FLOAT32 for one in read["layouts"]["models"]}
    return [
        (
            "cache per token and layer: latent / per head",
            f"{small['mla']:,.0f} / {small['mha']:,.0f} bytes",
            " / ".join(f"{caches[name]['bytes_per_token_and_layer']:,.0f}" for name in ("mla", "mha"))
            + " bytes",
        ),
        (
            "memory",
            f"{rollout['peak_bytes'] / 2**20:.0f} MiB at most; "
            f"{_more(rollout['resident_bytes']['growth'])} in minute 3 than in minute 1",
            " / ".join(f"{caches[name]['bytes_per_video'] / 1e6:,.0f}" for name in ("mla", "mha"))
            + " MB of cache for a video of any length",
        ),
    ]


def _quality(read: Documents) -> Rows:
    grades = read["grades"]["grades"]
    last = max(grades, key=int)
    right = grades[last]
    shares = ", ".join(f"{name} {right[name]:.0%}" for name in QUESTIONS)
    return [
        (
            f"still right after {last} s, of {read['grades']['prompts']} prompts",
            f"{shares}; everything at once {right['all']:.0%}",
            "cannot be judged: the weights are random",
        )
    ]


def _when(run: dict[str, Any]) -> str:
    """The date of a run on a GPU, and what its code did not have yet."""
    missing = lacking(run)
    if missing is None:
        return f"{run['date']}; what the code had is not recorded"
    return f"{run['date']}, before {', '.join(missing)}" if missing else str(run["date"])


def _by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{row['engine']} {row['precision']}": row for row in document["rows"] if "refused" not in row}


def _inverse(row: dict[str, Any]) -> str:
    """How many times as fast the baseline is as `row`."""
    said = f"{row['time_over_baseline']:.2f} ± {row['spread']:.2f}"
    return said if row["differs"] else f"{said}: no difference beyond the noise"


def _more(growth: float) -> str:
    return "no more" if growth < 0.0005 else f"{growth:.1%} more"
