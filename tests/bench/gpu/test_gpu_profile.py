"""The profile's arithmetic on spans by hand; clocks sampled from a program that speaks like nvidia-smi."""

import time

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import profile as profiler

from bench.gpu.profile import Span, gaps, part_of, spans_of, summary
from bench.speed import gpu_clocks
from bench.speed.gpu_clocks import Clocks

pytestmark = pytest.mark.cpu

CUDA = torch.device("cuda")


def spans(*triples):
    return [Span(name=name, start=start, end=end) for name, start, end in triples]


def test_gaps_are_what_no_kernel_covers_also_where_kernels_overlap():
    found = gaps(
        spans(("a", 0, 10), ("b", 5, 30), ("c", 20, 25), ("d", 34, 40), ("e", 40, 41), ("f", 51, 60))
    )
    assert found == {"count": 2, "ms": pytest.approx(0.014), "median_us": 7, "most_us": 10}


def test_time_is_summed_by_kernel_and_by_part():
    found = summary(spans(("nvjet_tst_128", 0, 1000), ("triton_poi_fused_gelu", 1000, 1500),
                          ("nvjet_tst_128", 1500, 3500)))  # fmt: skip
    assert found["device_ms"] == 3.5 and found["launched_kernels"] == 3
    assert found["parts"] == {"products": 3.0, "element-wise": 0.5}
    first = found["kernels"][0]
    assert (first["kernel"], first["count"], first["ms"]) == ("nvjet_tst_128", 2, 3.0)
    assert sum(found["parts"].values()) == pytest.approx(found["device_ms"] - found["gaps"]["ms"])
    assert summary([])["device_ms"] == 0


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("attention", "attention"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_NNT", "products"),
        ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm", "products"),
        ("expand", "expansion"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_red_fused_add_mul_native_layer_norm_0", "element-wise"),
    ],
)
def test_parts_are_told_by_the_names_that_libraries_give_kernels(kernel, part):
    assert part_of(kernel) == part


def test_on_a_cpu_the_outermost_operations_stand_for_kernels_without_overlap():
    layer, x = torch.nn.Linear(8, 8), torch.randn(4, 8)
    with torch.inference_mode(), profiler() as trace:
        layer(x).relu()
    found = spans_of(trace.events(), DeviceType.CPU)
    assert [span.name for span in found] == ["aten::linear", "aten::relu"]
    assert all(before.end <= after.start for before, after in zip(found, found[1:], strict=False))


SPEAKS = """#!/bin/sh
known='clocks.sm power.draw temperature.gpu clocks_event_reasons.active'
if [ "$1" = --help-query-gpu ]; then echo "$known"; exit; fi
case "$*" in *clocks.mem*) echo asked for what it lacks; exit 2;; esac
echo '1980, 650.5, 61, 0x0000000000000004'
echo '1755, 699.0, 66, [N/A]'
exec sleep 60
"""


def program(tmp_path, script):
    path = tmp_path / "nvidia-smi"
    path.write_text(script)
    path.chmod(0o755)
    return (str(path),)


def sampled(monkeypatch, told, *, until):
    monkeypatch.setattr(gpu_clocks, "_identity", lambda device: "GPU-0")
    with Clocks(CUDA, told) as clocks:
        end = time.monotonic() + 10
        while not until(clocks) and time.monotonic() < end:
            time.sleep(0.01)
    return clocks


def test_clocks_are_read_as_they_are_told_and_only_what_the_driver_knows_is_asked(tmp_path, monkeypatch):
    told = program(tmp_path, SPEAKS)
    clocks = sampled(monkeypatch, told, until=lambda clocks: len(clocks.samples) == 2)
    found = clocks.summary()
    assert found["sm_mhz"] == {"least": 1755, "median": 1867.5, "most": 1980}
    assert found["samples"] == 2 and found["celsius"]["most"] == 66
    assert found["limited_by"] == ["0x0000000000000004"]
    assert clocks.samples[1]["limited_by"] is None


def test_without_nvidia_smi_or_its_answer_there_is_a_reason_and_no_failure(tmp_path, monkeypatch):
    missing = sampled(monkeypatch, (str(tmp_path / "none"),), until=lambda clocks: clocks.refused)
    assert "tells nothing" in missing.summary()["refused"]
    unwilling = SPEAKS.replace("echo '1980", "echo 'No devices were found'; exit 6; echo '1980")
    refused = sampled(monkeypatch, program(tmp_path, unwilling), until=lambda clocks: clocks.refused)
    assert refused.summary() == {"refused": "No devices were found"}


def test_on_a_cpu_nothing_is_sampled():
    with Clocks(torch.device("cpu"), ("/nothing/here",)) as clocks:
        pass
    assert clocks.summary() == {"samples": 0, "limited_by": []}
