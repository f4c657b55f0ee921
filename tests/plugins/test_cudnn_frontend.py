"""Our graph of attention in float8 before cuDNN's real frontend, and before cuDNN itself, without a GPU."""

from pathlib import Path

import pytest
from kit.stand_ins.cudnn_frontend import run_with_cudnn, run_with_frontend

pytestmark = pytest.mark.cpu

CONTRACT = Path(__file__).with_name("cudnn_contract.py")


def test_the_frontend_takes_the_graph_and_refuses_what_we_refuse(pytestconfig):
    taken, refused = run_with_frontend(pytestconfig.cache, CONTRACT, "validate").splitlines()
    tokens, heads, width = 468, 12, 128
    dim, stride = [1, heads, tokens, width], [tokens * heads * width, width, heads * width, 1]
    assert taken == f"valid {dim} {stride}"
    assert refused == "hidden_dim should be multiple of 16"


@pytest.mark.slow
def test_cudnn_compiles_plans_for_hopper_and_blackwell(pytestconfig, tmp_path):
    lines = run_with_cudnn(pytestconfig.cache, tmp_path, CONTRACT, "build").splitlines()
    assert lines == ["800 refused", "900 built, workspace 256", "1000 built, workspace 0"]
