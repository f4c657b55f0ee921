"""Files of tests that take half a minute or so, and are begun first.

Begun last, one of two processes would work on such a file while the other has nothing left to do.
"""

LONGEST = (
    "tests/export/backends/test_tensorrt_rtx.py",
    "tests/export/test_engines.py",
    "tests/export/lowering/test_fp8_engine.py",
    "tests/export/lowering/test_regional.py",
    "tests/vmla/world/test_grade.py",
    "tests/bench/gpu/test_gpu_bench.py",
    "tests/vmla/train/test_training_doc.py",
    "tests/vmla/train/loop/test_parallel.py",
    "tests/runtime/rollout/test_promises.py",
    "tests/runtime/resume/test_state.py",
    "tests/bench/speed/test_memory_bench.py",
    "tests/faults/test_damaged_files.py",
)
