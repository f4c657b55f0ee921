"""What cuDNN's real frontend says to our graph; writes one line a question (see `test_cudnn_frontend.py`).

With the argument `validate` the frontend alone is asked; with `build` cuDNN makes plans for described GPUs.
"""

import json
import sys

import cudnn

from plugins.fp8.cudnn_attention import AttentionSizes, define

SMALL = AttentionSizes(batch=1, heads=12, queries=468, keys=936, width=128, deep=128)
H200 = {
    "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "pciDeviceId": 0,
    "isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 150754820096, "multiProcessorCount": 132,
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
    "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000, "l2CacheSize": 62914560,
}  # fmt: skip
"""As cuDNN writes down a device; from NVIDIA's published figures."""


def validated(sizes):
    """What validation says, and the output's layout."""
    made = define(sizes)
    try:
        made.graph.validate()
    except cudnn.cudnnGraphNotSupportedError as error:
        return str(error)
    return f"valid {made.outputs[0].get_dim()} {made.outputs[0].get_stride()}"


def built(version):
    """Whether cuDNN makes a plan for a GPU of this compute capability, times 100."""
    device = cudnn.create_device_properties(json.dumps(H200 | {"deviceVer": version}))
    graph = define(SMALL, device_property=device, sm_version=version // 10).graph
    try:
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    except cudnn.cudnnGraphNotSupportedError:
        return "refused"
    return f"built, workspace {graph.get_workspace_size()}"


if __name__ == "__main__":
    if sys.argv[1] == "validate":
        answers = [validated(SMALL), validated(SMALL._replace(width=40))]
    else:
        answers = [f"{version} {built(version)}" for version in (800, 900, 1000)]
    sys.stdout.write("\n".join(answers))
