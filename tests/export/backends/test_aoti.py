"""AOTInductor's packages take the attention that eager attention prefers, which no exported graph records."""

from types import SimpleNamespace

import pytest
import torch
import torch._inductor
from torch import nn
from torch._inductor.decomposition import select_decomp_table
from torch.nn.attention import SDPBackend

from export.backends import aoti
from export.lowering.regional import Regional
from plugins import dense_attention, sdpa

pytestmark = pytest.mark.cpu

FLASH = "aten._scaled_dot_product_flash_attention_for_cpu.default"


class Attention(nn.Module):
    """Attention to all keys, as a full window has it."""

    def forward(self, query, keys, values):
        return dense_attention(query, keys, values)


@pytest.fixture
def program():
    given = tuple(torch.randn(1, 2, 64, 32) for _ in range(3))
    with torch.no_grad():
        return torch.export.export(Attention(), given, strict=False)


@pytest.fixture(params=["whole", "by layer"])
def compiled(request, monkeypatch, program, tmp_path):
    """What Inductor would compile for a device of some capability: its operations, and the preference."""

    def package(device, capability):
        seen = {}

        def inductor(program, **_):
            nodes = program.run_decompositions(select_decomp_table()).graph.nodes
            seen["operations"] = {str(node.target) for node in nodes}
            seen["order"] = [SDPBackend(number) for number in torch._C._get_sdp_priority_order()]

        monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", inductor)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        manifest = SimpleNamespace(host=SimpleNamespace(device=device), compiler={})
        if request.param == "whole":
            aoti.AOTI().compile("step", program, manifest, tmp_path)
        else:
            parts = Regional(parts={"layer": program}, weights={"0.scale": torch.ones(1)})
            aoti.AOTI().compile_regional("step", parts, manifest, tmp_path)
        return seen

    return package


def preference():
    return torch._C._get_sdp_priority_order(), torch.backends.cuda.flash_sdp_enabled()


def test_a_package_for_hopper_prefers_what_eager_attention_prefers(compiled):
    before = preference()
    assert compiled("cuda", (9, 0))["order"][: len(sdpa.ORDER)] == sdpa.ORDER
    assert sdpa.ORDER[0] is SDPBackend.CUDNN_ATTENTION
    assert preference() == before


@pytest.mark.parametrize(("device", "capability"), [("cuda", (8, 9)), ("cpu", (9, 0))])
def test_every_other_package_is_left_to_pytorch(compiled, device, capability):
    before = preference()
    assert compiled(device, capability)["order"] == [SDPBackend(number) for number in before[0]]


def test_the_preference_decides_which_library_is_called(compiled, monkeypatch):
    # A CPU has two to choose from: flash attention, and plain products.
    assert FLASH in compiled("cpu", (9, 0))["operations"]
    monkeypatch.setattr(sdpa, "ORDER", [SDPBackend.MATH])
    found = compiled("cuda", (9, 0))["operations"]
    assert FLASH not in found
    assert "aten.bmm.default" in found
