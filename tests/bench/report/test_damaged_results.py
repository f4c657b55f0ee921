"""Results that are damaged, odd or hostile: named and left out of a report, which shows the others."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.files.damage import damaged
from kit.files.results import documents

from bench.cli import main as vmla_bench
from bench.report.comparison import verdicts
from bench.report.html_page import html
from bench.report.page import markdown
from bench.report.schema.kinds import KINDS, read_results
from bench.report.sections.kinds import SECTIONS
from plugins.errors import UserError

pytestmark = pytest.mark.cpu

RESULTS = sorted((Path(__file__).parents[3] / "bench" / "results").glob("*.json"))


def report(folder, *paths):
    return CliRunner().invoke(vmla_bench, ["report", *map(str, paths), "-o", str(folder / "report")])


def test_every_kind_that_is_shown_has_a_schema():
    assert KINDS.keys() == SECTIONS.keys()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_result_of_this_repository_is_shown(path):
    document = read_results(path)
    assert f"<h2>{document['kind']}" in html([(document, document)])
    assert f"## {document['kind']}" in markdown([(document, None)])
    assert verdicts([(document, document)], "worse") == []


def test_a_damaged_file_is_shown_whole_or_refused_in_one_line(tmp_path):
    rng, refused = random.Random(0), 0
    whole = [json.loads(path.read_text()) for path in [*RESULTS, *documents(tmp_path)]]
    for _ in range(300):
        document = rng.choice(whole)
        (tmp_path / "damaged.json").write_text(json.dumps(damaged(document, rng)))
        try:
            read = read_results(tmp_path / "damaged.json")
        except UserError as error:
            assert "\n" not in str(error) and "damaged.json" in str(error)
            refused += 1
            continue
        shown = html([(read, document)]) + markdown([(document, read)])
        assert "<script>" not in shown
        assert isinstance(verdicts([(read, document)], "worse"), list)
    assert 50 < refused < 250


def test_a_damaged_file_is_named_and_left_out(tmp_path):
    paths = documents(tmp_path)
    document = json.loads(paths[0].read_text())
    del document["rows"][0]["chunk_ms"]["p99"]
    (tmp_path / "lacking.json").write_text(json.dumps(document))
    (tmp_path / "cut.json").write_text(paths[0].read_text()[:100])
    done = report(tmp_path, tmp_path / "lacking.json", *paths, tmp_path / "cut.json")
    assert done.exit_code == 1, done.output
    said = done.stderr.strip().splitlines()
    assert len(said) == 2
    assert said[0].startswith(
        f"left out: {tmp_path}/lacking.json: field rows[0].measured.chunk_ms.p99 is missing"
    )
    assert said[1].startswith(f"left out: {tmp_path}/cut.json is not valid JSON")
    line = json.loads(done.stdout.splitlines()[-1])
    assert (line["results"], line["left_out"]) == (len(paths), 2)
    alone = report(tmp_path, tmp_path / "cut.json")
    assert alone.exit_code == 2 and len(alone.stderr.strip().splitlines()) == 1


def test_strings_are_text_in_html_and_in_markdown(tmp_path):
    path = documents(tmp_path)[0]
    document = json.loads(path.read_text())
    document["command"] = "vmla-bench `x` <img src=x>\n# heading"
    document["subject"] = "<script>alert(1)</script> | a\n## b"
    document["rows"][0]["engine"] = "[a](javascript:b) <b>|`"
    path.write_text(json.dumps(document))
    assert report(tmp_path, path).exit_code == 0
    page, summary = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for text in (page, summary):
        assert "<script" not in text and "<b>" not in text
    assert [line for line in summary.splitlines() if line.startswith("#")] == [
        "# Results", "## engines: &lt;script&gt;alert(1)&lt;/script&gt; \\| a ## b"
    ]  # fmt: skip
    assert "| \\[a](javascript:b) &lt;b&gt;\\|\\` fp32 |" in summary
    assert "`vmla-bench 'x' <img src=x> # heading`" in summary
