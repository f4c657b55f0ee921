"""Results files of every kind that a report shows, with made-up figures."""

from bench.harness.document import Record
from bench.quality.vbench import DIMENSIONS
from vmla.world.grader.grade import QUESTIONS


def engine_row(engine="eager-mla", speed=10.0, **changes):
    return {
        "engine": engine, "precision": "fp32", "layout": "mla", "frames_per_second": speed, "spread": 0.01,
        "chunk_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}, "time_over_baseline": 1.0, "differs": False,
        "share_of_matrix_peak": 0.5, "launches_per_chunk": 5, "error_velocity": 1e-6,
        "first_frame_seconds": 2.0, "peak_bytes": 9, **changes,
    }  # fmt: skip


def caches(speed):
    """Two forms of a cache."""
    return {
        "checkpoint": "sprites", "window": {"sink": 1, "history": 6},
        "rows": [{
            "cache": name, "bytes_per_token_and_layer": size, "bytes_per_video": 1000 * size, "error": 0.1,
            "drift": {"luma": 0.01}, "frames_per_second": speed, "time_over_latent": 1.1, "spread": 0.01,
            "differs": True,
            "along": [{"second": 0.75 * n, "chunk_ms": 9.0, "bytes": n * size, "apart": 0.0}
                      for n in (1, 2, 3)],
        } for name, size in (("latent, float32", 192), ("per head, float32", 2048))],
    }  # fmt: skip


def gpu_figures():
    """Measurements of the GPU benchmark that failed or went well."""
    return {
        "chunk": {"baseline": engine_row("A against A"), "rows": [engine_row()]},
        "aoti": {"refused": "no compiler"},
        "training": {"rows": [
            {"stage": "forcing", "peak_bytes": 1 << 30, "planned": {"all": 1 << 31},
             "steps": [{"seconds": 2.0, "tokens_per_second": 9e3, "utilisation": 0.5}] * 2},
            {"stage": "distribution", "refused": "out of memory"},
        ]},
        "kernels": {"rows": [
            {"arm": "expand, triton", "dtype": "bfloat16", "shape": {"batch": 1, "keys": 9360},
             "median_ms": 0.07, "tflops": 139.0, "time_over_sdpa": 0.14, "error": 1e-6},
        ]},
        "graphs": {"rows": [{"layout": "mla", "frames_per_second": 60.0, "spread": 0.01,
                             "launches": 1}]},
    }  # fmt: skip


def documents(folder, speed=10.0):
    """A results file of every kind that the report shows, with made-up figures."""
    peak = {"per_second": 1e12, "work": 1.0, "samples_ms": [1.0]}
    part = {"attention": {"flops": 1e9, "numbers": 1e6}}
    cache = {"bytes_per_token_and_layer": 448.0, "bytes_per_video": 1e8}
    figures_of = {
        "engines": {
            "subject": "debug", "baseline": "eager-mla fp32", "frames_per_chunk": 12,
            "rows": [engine_row(speed=speed), {"engine": "onnx", "precision": "bf16", "refused": "a < b"}],
        },
        "roofline": {
            "subject": "debug", "peaks": {"matrix": {"fp32": peak}, "copy": peak, "size": 8},
            "passes": [{"layout": "mla", "form": "expanded", "parts": part}],
            "floors": [{"layout": "mla", "form": "expanded", "precision": "fp32", "chunk_seconds": 0.1,
                        "frames_per_second": 120.0}],
        },
        "memory": {
            "subject": "wan-1.3b", "compared": {"less": 0.927, "times_smaller": 13.7}, "passes": [],
            "caches": {"mha": {**cache, "bytes_per_token_and_layer": 6144.0}, "mla": cache},
            "streams": [{"layout": name, "streams": n, "weights_bytes": 3, "memory_bytes": 1 << 36}
                        for name, n in (("mha", 3), ("mla", 40))],
        },
        "rollout": {
            "checkpoint": "sprites", "wall_seconds": 3.0, "first_frame_seconds": 1.0, "peak_bytes": 5,
            "frames_per_second": 90.0, "times_real_time": 6.0, "drift": {"luma": 0.01},
            "resident_bytes": {"growth": 0.0},
            "picture": [{"second": 4.0 * n, "saturation": 1.0, "luma": 0.5, "sharpness": 0.1, "motion": 0.0,
                         "grades": {"all": True}} for n in (1, 2)],
            "chunks": [{"second": 1.0, "chunk_seconds": 0.1, "resident_bytes": 1 << 20}] * 2,
        },
        "caches": caches(speed),
        "grades": {"prompts": 2, "grades": {mark: dict.fromkeys((*QUESTIONS, "all"), share)
                                            for mark, share in (("5", 0.5), ("60", 0.25))}},
        "gpu": gpu_figures(),
        "quality": {"scores": dict.fromkeys(DIMENSIONS, 0.5), "summary": {"six_metric_mean": 0.5}},
    }  # fmt: skip
    paths = []
    for kind, found in figures_of.items():
        paths.append(folder / f"{kind}.json")
        Record(kind, paths[-1]).save(**found, complete=True)
    return paths
