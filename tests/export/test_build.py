"""Building: whole or not at all, reused when nothing changed. The compiler is replaced by a quick one."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.backends import aoti
from export.build import build as build_in
from export.checks import check_files
from export.engine.engine_folder import remove_temporary, replacing
from export.engine.manifest import Manifest
from export.lowering.calibration import Calibration
from export.settings import Settings, choose_backend
from plugins.errors import UserError
from runtime.cli.export import main
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu


RTX = ("--backend", "tensorrt-rtx", "--target")


@pytest.fixture
def compiled(monkeypatch):
    """The names of the programs that were compiled, by a compiler that writes its input's graph."""
    names = []

    def package(program, path, options):
        names.append(path.stem)
        path.write_text(str(program.graph))

    monkeypatch.setattr(aoti, "package", package)
    return names


def build(checkpoint, output, *more):
    arguments = ["build", "--checkpoint", checkpoint, "--backend", "aoti", "-o", output, *more]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_build_says_each_stage_and_is_reused(checkpoint, tmp_path, compiled):
    first = build(checkpoint, tmp_path / "engine")
    assert first.exit_code == 0, first.output
    for phase in ("load", "trace", "lower to fp32", "compile step", "compile prompt", "hash"):
        assert f"{phase}: " in first.output
    assert "MiB" in first.output
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == [
        "manifest.json", "prompt.pt2", "step.pt2"
    ]  # fmt: skip
    again = build(checkpoint, tmp_path / "engine")
    assert "unchanged" in again.output
    assert compiled == ["step", "prompt"]


@pytest.mark.parametrize("change", ["precision", "damage", "version"])
def test_it_is_built_anew_when_anything_changed(checkpoint, tmp_path, compiled, change, monkeypatch):
    folder = tmp_path / "engine"
    assert build(checkpoint, folder).exit_code == 0
    if change == "damage":
        (folder / "step.pt2").write_text("x")
    if change == "version":
        monkeypatch.setattr("export.engine.target._version", lambda name: "99")
    more = ["--precision", "bf16"] if change == "precision" else []
    assert "built" in build(checkpoint, folder, *more).output
    assert compiled == ["step", "prompt"] * 2
    manifest = Manifest.read(folder)
    assert manifest.precision == ("bf16" if change == "precision" else "fp32")
    check_files(manifest, folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_an_fp8_build_is_calibrated_and_reused(checkpoint, tmp_path, compiled):
    folder, fp8 = tmp_path / "engine", ("--precision", "fp8")
    first = build(checkpoint, folder, *fp8)
    assert first.exit_code == 0, first.output
    assert "calibrated on 4 prompts, 6 chunks, 17 passes, seed 0" in first.output
    assert "vmla.dequantize_rows" in (folder / "step.pt2").read_text()
    assert "unchanged" in build(checkpoint, folder, *fp8).output
    calibration = Calibration.read(folder / "calibration.json")
    calibration.write(tmp_path / "same.json")
    assert "unchanged" in build(checkpoint, folder, *fp8, "--calibration", tmp_path / "same.json").output
    doubled = {name: 2 * value for name, value in calibration.largest.items()}
    replace(calibration, largest=doubled).write(tmp_path / "other.json")
    assert "built" in build(checkpoint, folder, *fp8, "--calibration", tmp_path / "other.json").output
    assert compiled == ["step", "prompt"] * 2


def test_without_a_calibration_or_a_way_to_make_one_nothing_is_built(checkpoint, tmp_path, compiled):
    settings = Settings(backend="aoti", precision="fp8")
    with pytest.raises(UserError, match="needs a calibration; make one with: vmla-export calibrate"):
        build_in(open_checkpoint(checkpoint), settings, tmp_path / "engine", lambda phase: None)
    assert list(tmp_path.iterdir()) == compiled == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing_and_keeps_what_was(checkpoint, tmp_path, monkeypatch, error):
    def stop(program, path, options):
        path.write_text("half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(aoti, "package", stop)
        assert build(checkpoint, tmp_path / "engine").exit_code != 0
        assert list(tmp_path.iterdir()) == []
        patch.setattr(aoti, "package", lambda program, path, options: path.write_text("whole"))
        assert build(checkpoint, tmp_path / "engine").exit_code == 0
        patch.setattr(aoti, "package", stop)
        assert build(checkpoint, tmp_path / "engine", "--batch", 2).exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    kept = Manifest.read(tmp_path / "engine")
    check_files(kept, tmp_path / "engine")
    assert kept.batch == 1


def test_a_signal_ends_a_build_in_one_line_and_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def told(program, path, options):
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(aoti, "package", told)
    result = build(checkpoint, tmp_path / "engine")
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    last = f"stopped by SIGTERM; {tmp_path / 'engine'} is unchanged; run the same command again to build it"
    assert result.stderr.splitlines()[-1] == last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at_once", [False, True])
def test_an_engine_is_there_again_if_the_new_one_does_not_take_its_place(tmp_path, monkeypatch, at_once):
    folder, usual = tmp_path / "engine", Path.replace
    folder.mkdir()
    (folder / "old").touch()

    def replace(path, target):
        if path.name.endswith(".building"):
            if at_once:  # as the thread that ends the process would
                remove_temporary(folder)
            raise KeyboardInterrupt
        return usual(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt), replacing(folder) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["engine", "old"]


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def fill(program, path, options):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(aoti, "package", fill)
    result = build(checkpoint, tmp_path / "engine")
    assert result.exit_code == 2
    line = result.output.splitlines()[-1]
    assert line.startswith(f"Error: cannot make {tmp_path / 'engine'}: No space left on device; nothing of")
    assert list(tmp_path.iterdir()) == []


STUCK = """
import sys, time
from export.backends import aoti
from export.build import build as build_in
from export.lowering.calibration import Calibration
from runtime.cli.export import main
def package(program, path, options):
    path.write_text("half")
    print("stuck", flush=True)
    while "swallowed" in sys.argv[-1]:
        try:
            time.sleep(600)
        except BaseException:
            pass
    time.sleep(600)
aoti.package = package
main()
"""


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGTERM, "engine"), (signal.SIGTERM, "swallowed"), (signal.SIGKILL, "engine")],
)
def test_a_killed_build_leaves_nothing_for_long(checkpoint, tmp_path, compiled, number, name):
    folder = tmp_path / name
    options = ["--checkpoint", str(checkpoint), "--backend", "aoti", "-o", str(folder)]
    command = [sys.executable, "-c", STUCK, "build", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while "stuck" not in (line := process.stdout.readline()):
            assert line, "the build ended by itself"
        os.kill(process.pid, number)
        status = process.wait(60)
    assert not folder.exists()
    if number == signal.SIGTERM:
        assert status == 128 + number
        assert list(tmp_path.iterdir()) == []
    assert build(checkpoint, folder).exit_code == 0
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_no_engine_is_left_alone(checkpoint, tmp_path, compiled):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("reader")
    result = build(checkpoint, tmp_path / "letters")
    assert result.exit_code == 2
    assert "is not an engine" in result.output
    assert (tmp_path / "letters" / "dear.txt").read_text() == "reader"
    assert compiled == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tensorrt", "--precision", "bf16"], "videomla[trt]"),
        (["--backend", "tensorrt", "--attention", "plugin"], "computes in bf16 and fp16"),
        (["--backend", "onnx", "--attention", "loud"], "no such attention: loud"),
        (["--backend", "aoti", "--attention", "plugin"], "backend aoti takes no --attention plugin"),
        (["--backend", "abacus"], "no such backend: abacus; there are aoti, onnx, tensorrt, tensorrt-rtx"),
        (["--precision", "int3"], "no such precision: int3"),
        (["--precision", "nvfp4", "--backend", "aoti"], "nvfp4 is for TensorRT engines of Blackwell GPUs"),
        (["--precision", "bf16", "--calibration", "x.json"], "precision bf16 takes no calibration"),
        (
            ["--precision", "fp8", "--calibration", "x.json"],
            "x.json is missing; make one with: vmla-export calibrate",
        ),
        (["--batch", "0"], "batch is 0"),
        (["--device", "tpu"], "no such device: tpu"),
        (["--backend", "onnx", "--device", "cuda"], "leave --device out"),
        (["--backend", "tensorrt-rtx"], "tensorrt-rtx needs the GPU that it builds for: --target sm_89"),
        (["--backend", "tensorrt-rtx", "--target", "sm_90"], "builds no engines for sm_90"),
        (["--backend", "aoti", "--target", "sm_89"], "a target goes with backend tensorrt-rtx"),
        ([*RTX, "sm_86", "--precision", "fp8"], "sm_86 does not multiply fp8, sm_89 and newer do; use bf16"),
        ([*RTX, "sm_89", "--precision", "nvfp4"], "sm_89 does not multiply nvfp4, sm_100 and newer do"),
        (["--checkpoint", "nowhere"], "no checkpoint 'nowhere'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(tmp_path, arguments, said):
    result = CliRunner().invoke(main, ["build", *arguments, "-o", str(tmp_path / "engine")])
    assert result.exit_code == 2
    line = result.output.splitlines()[-1]
    assert said in line
    assert line.startswith("Error: ")
    assert not (tmp_path / "engine").exists()


def test_a_missing_tool_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("export.backends.aoti.shutil.which", lambda name: None)
    with pytest.raises(UserError, match="install g"):
        Settings(backend="aoti", precision="fp32").check_tools()
    assert choose_backend()[0] == "onnx"
    monkeypatch.setattr("export.backends.base.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"videomla\[onnx\]"):
        Settings(backend="onnx", precision="fp32").check_tools()
    with pytest.raises(UserError, match=r"videomla\[onnx\]|videomla\[trt-rtx\]"):
        Settings(backend="tensorrt-rtx", precision="fp32", target="sm_89").check_tools()


@pytest.mark.parametrize(
    ("gpu", "installed", "chosen"),
    [
        ("sm_90", {"tensorrt", "tensorrt_rtx"}, ("tensorrt", None)),
        ("sm_89", {"tensorrt", "tensorrt_rtx"}, ("tensorrt", None)),
        ("sm_89", {"tensorrt_rtx"}, ("tensorrt-rtx", "sm_89")),
        ("sm_90", {"tensorrt_rtx"}, ("aoti", None)),
        ("no GPU", {"tensorrt", "tensorrt_rtx"}, ("aoti", None)),
        ("sm_120", set(), ("aoti", None)),
    ],
)
def test_the_default_backend_is_what_gpu_and_packages_allow(monkeypatch, gpu, installed, chosen):
    monkeypatch.setattr("export.settings.gpu_architecture", lambda: gpu)
    monkeypatch.setattr("export.backends.base.find_spec", lambda name: name if name in installed else None)
    backend, target, reason = choose_backend()
    assert (backend, target) == chosen
    assert gpu in reason
    assert choose_backend("sm_86")[:2] == ("tensorrt-rtx", "sm_86")


def test_a_backend_attends_by_itself_unless_the_plugin_is_asked_for():
    for backend in ("tensorrt", "onnx", "aoti"):
        usual = Settings(backend=backend, precision="bf16")
        assert (usual.attention_form, usual.name) == ("native", f"{backend}-bf16")
    plugin = Settings(backend="onnx", precision="fp32", attention="plugin")
    assert (plugin.attention_form, plugin.name) == ("plugin", "onnx-fp32-plugin")
    plugin = Settings(backend="tensorrt", precision="bf16", attention="plugin")
    assert (plugin.attention_form, plugin.name) == ("plugin", "tensorrt-bf16-plugin")
    assert "--attention plugin" in plugin.builder.remark(Settings(backend="tensorrt", precision="bf16"))
    assert plugin.builder.remark(plugin) is None


def test_one_layer_is_compiled_for_all_on_a_gpu_unless_something_else_is_said():
    def form(**options):
        settings = Settings(**{"backend": "aoti", "precision": "bf16", **options})
        return settings.by_layer, settings.name

    assert form() == (False, "aoti-bf16")
    assert form(device="cuda") == (True, "aoti-bf16-cuda")
    assert form(device="cuda", precision="fp8") == (True, "aoti-fp8-cuda")
    assert form(precision="fp8") == (False, "aoti-fp8")
    assert form(precision="fp8", regional=True) == (True, "aoti-fp8-regional")
    assert form(regional=True) == (True, "aoti-bf16-regional")
    assert form(device="cuda", regional=False) == (False, "aoti-bf16-cuda-whole")
    assert form(backend="onnx") == (False, "onnx-bf16")
    with pytest.raises(UserError, match="compiles whole programs; leave --regional out"):
        form(backend="onnx", precision="fp32", regional=True)


def test_the_default_backend_comes_with_its_reason(checkpoint, tmp_path, compiled):
    arguments = ["build", "--checkpoint", checkpoint, "-o", tmp_path / "engine"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.output.splitlines()[0].startswith("backend: aoti (")


def test_engines_are_listed_and_inspected(checkpoint, tmp_path, compiled, monkeypatch):
    build(checkpoint, tmp_path / "one")
    build(checkpoint, tmp_path / "two", "--batch", 2, "--precision", "fp16")
    monkeypatch.setattr("export.engine.target._version", lambda name: "99")
    build(checkpoint, tmp_path / "one-99")
    monkeypatch.undo()
    listed = CliRunner().invoke(main, ["list", str(tmp_path)]).output.splitlines()
    assert [line.partition(": ")[0].rpartition("/")[2] for line in listed] == ["one", "one-99", "two"]
    assert "aoti fp16, batch 2" in listed[2]
    assert "does not run here" in listed[1]
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "two")]).output
    assert "  in  cache float16 [2, 2, 64, 24]" in shown.splitlines()
    told = CliRunner().invoke(main, ["inspect", "--json", str(tmp_path / "two")]).output
    assert told.strip() == (tmp_path / "two" / "manifest.json").read_text().strip()
    empty = CliRunner().invoke(main, ["list", str(tmp_path / "nowhere")])
    assert empty.exit_code == 2
    assert "no engines in" in empty.output


def test_without_a_name_an_engine_is_the_user_s_own(checkpoint, tmp_path, compiled, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "data" / "videomla" / "engines"
    nothing = CliRunner().invoke(main, ["list"])
    assert nothing.exit_code == 2 and f"no engines in {store}" in nothing.output
    arguments = ["build", "--checkpoint", str(checkpoint), "--backend", "aoti"]
    monkeypatch.setattr("runtime.cli.background.after.LARGEST", 0)  # nothing that was compiled could be timed
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"{store / 'debug-aoti-fp32'}: built" in result.output.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert f"{store / 'debug-aoti-fp32'}: aoti fp32" in CliRunner().invoke(main, ["list"]).output
    monkeypatch.setattr("export.engine.manifest.Path.home", nowhere)
    monkeypatch.delenv("XDG_DATA_HOME")
    homeless = CliRunner().invoke(main, ["list"])
    assert homeless.exit_code == 2 and "there is no home folder to keep engines in" in homeless.output


def nowhere():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_missing_tools_are_named_before_a_checkpoint_is_looked_for(tmp_path, monkeypatch, backend):
    monkeypatch.setattr("export.backends.base.find_spec", lambda name: None)
    asked = ["build", "--backend", backend, "--checkpoint", "nowhere", "-o", str(tmp_path / "engine")]
    if backend == "tensorrt-rtx":
        asked += ["--target", "sm_89"]
    result = CliRunner().invoke(main, asked)
    extra = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}[backend]
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].endswith(f'pip install "videomla[{extra}]"')
