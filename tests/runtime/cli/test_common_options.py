"""What all commands share: help that loads nothing, versions, logs, files of options."""

import io
import json
import logging
import re
import subprocess
import sys
from importlib import import_module
from typing import get_args

import click
import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from bench.cli import VERBS
from bench.cli import main as vmla_bench
from bench.site.commands import scripts
from export.lowering.precision import Precision
from runtime.cli.export import PRECISIONS
from runtime.cli.export import main as vmla_export
from runtime.cli.run import main as vmla_run
from vmla.cli.command import OneLineCommand
from vmla.cli.logs import logging_to_stderr
from vmla.cli.options.choices import Choice, ChoiceList
from vmla.cli.options.config_file import config_option
from vmla.cli.progress import PhaseBar, ProgressLine
from vmla.train.cli.commands import main as vmla_train
from vmla.train.recipes import FROM_CHECKPOINT, FROM_SCRATCH
from vmla.train.recipes.from_checkpoint import DISTILLATION_RECIPES
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES
from vmla.weights.published import NAMES as PRESET_NAMES
from vmla.weights.published.presets import PRESETS

pytestmark = pytest.mark.cpu

HEAVY = ("torch", "numpy", "pydantic", "transformers", "huggingface_hub", "av", "rich", "fastapi")
COMMANDS = (
    "runtime.cli.run",
    "runtime.cli.export",
    "runtime.cli.serve",
    "vmla.train.cli.commands",
    "bench.cli",
)
ALL_HELP = f"""
import json, sys
from importlib import import_module
from typing import get_args
from click.testing import CliRunner
told = {{}}
for name in {COMMANDS}:
    main = import_module(name).main
    verbs = main.list_commands(None) if hasattr(main, "list_commands") else []
    for words in ([], *([verb] for verb in verbs)):
        done = CliRunner().invoke(main, [*words, "-h"])
        told[" ".join([name, *words])] = [done.exit_code, "Show this message" in done.output]
print(json.dumps([told, [name for name in {HEAVY} if name in sys.modules]]))
"""


def test_help_loads_no_heavy_module():
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True, check=True)
    told, heavy = json.loads(done.stdout)
    assert len(told) > 40 and all(each == [0, True] for each in told.values()), told
    assert heavy == []


def test_the_help_of_a_bench_is_what_its_command_says():
    for verb in ("caches", "gpu", "layouts"):
        kept, own = (
            CliRunner().invoke(vmla_bench, words, prog_name="vmla-bench", terminal_width=78).output
            for words in ([verb, "-h"], [verb, "-q", "-h"])
        )
        assert kept == own and kept.startswith(f"Usage: vmla-bench {verb} ")


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_benches_says_what_each_says_of_itself(verb):
    module, does = VERBS[verb]
    if verb == "serve":
        for needed in ("httpx", "uvicorn"):
            pytest.importorskip(needed, reason="the extra `serve` is not installed")
    said = import_module(module).main.help
    assert " ".join(said.split("\n\n")[0].split()) == does


def all_commands():
    """Every command and subcommand, by its name."""
    for name, command in scripts().items():
        yield name, command
        context = click.Context(command)
        for verb in command.list_commands(context) if isinstance(command, click.Group) else ():
            yield f"{name} {verb}", command.get_command(context, verb)


def test_every_option_says_what_it_is_for():
    silent = {
        f"{name} {option.opts[0]}"
        for name, command in all_commands()
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not option.help
    }
    assert silent == set()


def test_a_device_is_asked_for_alike_everywhere():
    found = {
        name: (option.default, option.help)
        for name, command in all_commands()
        for option in command.params
        if "--device" in option.opts
    }
    assert {"vmla-run", "vmla-serve", "vmla-train run", "vmla-export build", "vmla-bench engines"} <= {*found}
    assert {default for default, _ in found.values()} == {"auto"}
    assert all("; auto: " in told and "else the CPU." in told for _, told in found.values())


def test_names_are_shown_as_choices_and_listed_where_they_are_many():
    shown = {
        f"{name} {option.opts[0]}": (option.type.choices, option.make_metavar(click.Context(command)), option)
        for name, command in all_commands()
        for option in command.params
        if hasattr(option.type, "choices")
    }
    assert len(shown) > 40
    for choices, metavar, option in shown.values():
        assert isinstance(option.type, Choice | ChoiceList)
        between = "|".join(choices)
        assert between in metavar or f"One of: {', '.join(choices)}." in option.help


def test_names_that_are_known_before_pytorch_is_loaded_are_those_that_there_are():
    assert tuple(PRETRAINING_RECIPES) == FROM_SCRATCH
    assert tuple(DISTILLATION_RECIPES) == FROM_CHECKPOINT
    assert tuple(PRESETS) == PRESET_NAMES
    assert get_args(Precision) == PRECISIONS


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (vmla_train, ["run", "sprits"], "no such recipe: sprits; there are debug, mini, sprites; did you"),
        (vmla_train, ["stage", "focing"], "no such stage: focing; .*; did you mean forcing"),
        (vmla_train, ["convert", "--from", "x", "--preset", "selfforcing"], "no such preset: selfforcing; "),
        (vmla_export, ["build", "--precision", "fp7"], "no such precision: fp7; .*; did you mean fp"),
        (vmla_export, ["build", "--backend", "aot"], "no such backend: aot; .*; did you mean aoti"),
        (vmla_run, ["--layout", "per-head"], "no such layout: per-head; there are mla, mha$"),
        (vmla_bench, ["engines", "--precisions", "fp32,bf61"], "no such precision: bf61; .*; did you mean"),
    ],
)  # fmt: skip
def test_a_name_that_there_is_not_is_refused_in_one_line_with_the_nearest(main, words, said):
    done = CliRunner().invoke(main, words)
    (line,) = done.stderr.splitlines()
    assert done.exit_code == 2 and re.match(f"Error: {said}", line)


def test_a_list_of_names_is_read_in_its_order_and_completed_at_its_end():
    kind = ChoiceList(["fp32", "bf16", "fp8"])
    assert kind.convert("fp8, fp32,fp8", None, None) == ("fp8", "fp32")
    context, option = click.Context(vmla_run), click.Option(["--precisions"], type=kind)
    assert [item.value for item in kind.shell_complete(context, option, "bf16,fp")] == [
        "bf16,fp32",
        "bf16,fp8",
    ]


@pytest.mark.parametrize("main", [vmla_run, vmla_export])
def test_a_command_knows_its_version(main):
    done = CliRunner().invoke(main, ["--version"])
    assert done.exit_code == 0 and done.output.split()[-1][0].isdigit()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], ["warning: w"]),
        (["-q"], []),
        (["-v"], ["d", "i", "warning: w"]),
        (["--log-level", "info"], ["i", "warning: w"]),
    ],
)
def test_the_log_goes_as_far_as_it_is_asked_to(asked, said):
    @click.command(cls=OneLineCommand)
    def main():
        log = logging.getLogger("vmla.some.module")
        log.debug("d"), log.info("i"), log.warning("w")

    assert CliRunner().invoke(main, asked).stderr.splitlines() == said
    assert logging.getLogger("vmla").handlers == []


@click.command(cls=OneLineCommand)
@config_option
@click.option("--seed", default=0)
@click.option("--save-every", type=float, default=5.0)
@click.option("--prompt")
@click.option("--dry-run", is_flag=True)
def options_of(**options):
    click.echo(json.dumps(options))


def test_a_file_gives_options_and_the_command_line_wins(tmp_path):
    file = tmp_path / "video.yaml"
    file.write_text("seed: 3\nsave-every: 2\nprompt: a star\ndry-run: true\n")
    done = CliRunner().invoke(options_of, ["--seed", "4", "--config", str(file)])
    assert json.loads(done.output) == {"seed": 4, "save_every": 2.0, "prompt": "a star", "dry_run": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sede: 3", "field sede is unknown"),
        ("seed: three", "field seed is"),
        ("seed: true", "field seed is"),
        ("- seed", "is not a mapping of options"),
        ("config: other.yaml", "field config is unknown"),
        ('prompt: "a\\0star"', "field prompt has a NUL in it"),
    ],
)
def test_a_file_with_anything_else_is_refused_in_one_line(tmp_path, text, said):
    file = tmp_path / "video.yaml"
    file.write_text(text)
    done = CliRunner().invoke(options_of, ["--config", str(file)])
    assert done.exit_code == 2
    assert said in done.output.splitlines()[-1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_shown_how_much_is_done_and_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream, seconds = Terminal(), iter([0.0, 10.0])
    monkeypatch.setattr("vmla.cli.progress.time.monotonic", lambda: next(seconds, 10.0))
    with ProgressLine(stream) as line:
        line.show("[chunk]", done=0.25)
        line.show("[chunk]", done=0.5)
    assert " 50%" in stream.getvalue() and "0:20 left" in stream.getvalue() and "[chunk]" in stream.getvalue()


def test_a_bar_shows_phases_on_a_terminal_and_is_silent_in_a_pipe(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with PhaseBar(stream) as bar:
            bar.advance(1, 2)  # of no phase
            bar.begin("trace [a]")
            bar.advance(1, 4)
            bar.begin("compile")
    assert "compile" in terminal.getvalue() and "trace [a]" in terminal.getvalue()
    assert pipe.getvalue() == ""


def test_quiet_shows_no_progress():
    stream = io.StringIO()
    with logging_to_stderr("error"), ProgressLine(stream) as line:
        line.show("chunk", done=0.5)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\n"),
    ],
)
def test_memory_that_runs_out_is_said_in_one_line(error):
    @click.command(cls=OneLineCommand)
    def greedy():
        raise error

    assert_one_line(CliRunner().invoke(greedy), "memory ran out")


def test_another_error_of_the_runtime_is_no_lack_of_memory():
    @click.command(cls=OneLineCommand)
    def wrong():
        raise RuntimeError("a fault of ours")

    assert isinstance(CliRunner().invoke(wrong).exception, RuntimeError)


@pytest.mark.parametrize(
    "words", [("run", "debug", "-o", "x"), ("render", "debug", "--with", "x", "-o", "x")]
)
def test_more_threads_than_a_machine_has_use_for_are_refused_before_they_end_the_process(
    tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    assert_one_line(
        CliRunner().invoke(vmla_train, [*words, "--threads", "100000000"]), "100000000 threads on"
    )
