"""What `docs/options.md` shows works: its file of options, and its lines for completion in a shell."""

import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.cli.run import main as vmla_run

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "options.md").read_text()
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
LINES = re.findall(r"_VMLA_RUN_COMPLETE=(\w+)_source vmla-run", TEXT)


def completed(program, instruction, **words):
    """What `program` answers a shell that asks it for completion."""
    module, name = SCRIPTS[program].split(":")
    asked = {f"_{program.upper().replace('-', '_')}_COMPLETE": instruction, **words}
    main = getattr(importlib.import_module(module), name)
    result = CliRunner().invoke(main, prog_name=program, env=asked)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_file_of_options_makes_its_video(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (options,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    Path("video.yaml").write_text(options)
    line = ["--config", "video.yaml", "--checkpoint", str(checkpoint), "--chunks", "2"]
    result = CliRunner().invoke(vmla_run, line)
    assert result.exit_code == 0, result.output
    told = json.loads(Path("star.mp4.json").read_text())
    assert f"prompt: {told['prompt']}\n" in options and f"seed: {told['seed']}\n" in options
    assert told["frames"] == 24  # not the file's 20 s: a length on the command line takes its place


@pytest.mark.parametrize("program", SCRIPTS)
@pytest.mark.parametrize("shell", LINES)
def test_every_line_for_a_shell_gives_it_a_function(shell, program):
    function = completed(program, f"{shell}_source")
    assert f"{program.replace('-', '_')}_completion" in function
    assert f"_COMPLETE={shell}_complete" in function and program in function


def test_options_choices_and_verbs_are_completed():
    def answers(line):
        program, *words = line.split(" ")
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words))}
        return [each.partition(",")[2] for each in completed(program, "bash_complete", **asked).split()]

    assert LINES == ["bash", "zsh", "fish"]
    assert "--seconds" in answers("vmla-run --sec")
    assert answers("vmla-run --log-level w") == ["warning"]
    assert answers("vmla-train pack-") == ["pack-stages"]
