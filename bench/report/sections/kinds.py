"""For each kind of document, the function that makes its section."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.report.elements.table import Section
from bench.report.sections import quality, speed, studies
from bench.report.sections.caches import caches_section
from bench.report.sections.gpu import gpu_section

SECTIONS: dict[str, Callable[[dict[str, Any]], Section]] = {
    "engines": speed.engines_section,
    "roofline": speed.roofline_section,
    "memory": speed.memory_section,
    "rollout": speed.rollout_section,
    "runtime": speed.runtime_section,
    "serve": speed.serve_section,
    "grades": quality.grades_section,
    "diagnose": quality.diagnose_section,
    "grader": quality.grader_section,
    "layouts": quality.layouts_section,
    "spectrum": studies.spectrum_section,
    "gpu": gpu_section,
    "quality": quality.quality_section,
    "kernels": speed.kernels_section,
    "study": studies.study_section,
    "caches": caches_section,
    "conversion": studies.conversion_section,
}
