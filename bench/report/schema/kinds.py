"""Results files that a report can show, checked as a whole before any of it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.harness.document import read_document
from bench.report.schema import caches, gpu, quality, serving, speed
from bench.report.schema.parts import Document
from plugins.documents.typed import typed

KINDS: dict[str, type[Document]] = {
    "engines": speed.EnginesResults,
    "roofline": speed.RooflineResults,
    "memory": speed.MemoryResults,
    "rollout": speed.RolloutResults,
    "runtime": speed.RuntimeResults,
    "serve": serving.ServeResults,
    "kernels": speed.KernelsResults,
    "gpu": gpu.GpuResults,
    "grades": quality.GradesResults,
    "diagnose": quality.DiagnoseResults,
    "grader": quality.GraderResults,
    "layouts": quality.LayoutsResults,
    "spectrum": quality.SpectrumResults,
    "quality": quality.QualityResults,
    "study": quality.StudyResults,
    "caches": caches.CachesResults,
    "conversion": quality.ConversionResults,
}
"""The schema of each kind; of another one a report shows the heading alone."""


def read_results(path: Path) -> dict[str, Any]:
    """A results file whose figures are all there and of the right types.

    Raises:
        UserError: see `read_document`; also names a field that is missing or of the wrong type.
    """
    document = read_document(path)
    # Fields that no report shows are not checked.
    typed(
        document, KINDS.get(document["kind"], Document), str(path), others="ignore", mend="measure it again"
    )
    return document
