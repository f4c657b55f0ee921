"""Files of somebody else: what cannot be is refused in one line that names the file and the field."""

import json
import os
import re
import tracemalloc
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import torch
from safetensors.torch import save_file

from plugins.atomic_files import atomic_write_text
from plugins.documents.json_file import DEEPEST, parse_json, read_json
from plugins.documents.regular_file import PIECE, open_own, read_bytes, read_text
from plugins.documents.tensor_header import read_header
from plugins.documents.typed import Between, typed
from plugins.documents.yaml_file import read_yaml
from plugins.errors import UserError

pytestmark = pytest.mark.cpu


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part of a document."""

    steps: Annotated[int, Between(1, 1000)]
    shift: float = 5.0
    kind: Literal["euler", "renoise"] = "euler"

    def __post_init__(self):
        if self.steps == 13:
            raise UserError("steps is 13, which brings bad luck")


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A document."""

    inner: Inner
    sizes: tuple[int, ...] = ()
    rows: list[Inner] = field(default_factory=list)
    note: str | None = None


def refused(said, call, *arguments, **options):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def test_values_become_the_dataclass():
    values = {"inner": {"steps": 4, "shift": 3}, "sizes": [1, 2], "rows": [{"steps": 1}], "note": None}
    assert typed(values, Outer, "a.json") == Outer(
        inner=Inner(steps=4, shift=3.0), sizes=(1, 2), rows=[Inner(steps=1)]
    )
    assert typed({"inner": {"steps": 4, "more": 1}, "else": 2}, Outer, "a.json", others="ignore") == Outer(
        inner=Inner(steps=4)
    )
    assert typed([{"steps": 2}], list[Inner], "a.json") == [Inner(steps=2)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inner": {"steps": 1.5}}, "a.json: field inner.steps is 1.5; input should be a valid integer"),
        ({"inner": {"steps": 1.0}}, "field inner.steps is 1.0; input should be a valid integer"),
        ({"inner": {"steps": "4"}}, "field inner.steps is '4'"),
        ({"inner": {"steps": True}}, "field inner.steps is True"),
        ({"inner": {"steps": 0}}, "field inner.steps is 0; input should be greater than or equal to 1"),
        ({"inner": {"steps": 10**15}}, "input should be less than or equal to 1000"),
        ({"inner": {"steps": 13}}, "a.json: steps is 13, which brings bad luck"),
        ({"inner": {"steps": 1, "shift": True}}, "field inner.shift is True"),
        ({"inner": {"steps": 1, "kind": "ddim"}}, "field inner.kind is 'ddim'; input should be 'euler'"),
        ({"inner": {"stpes": 1}}, "field inner.stpes is unknown"),
        ({"inner": {}}, "field inner.steps is missing"),
        ({"inner": [1]}, "field inner is [1]; input should be an object"),
        ({"rows": [{"steps": 1}, {"steps": None}]}, "field rows[1].steps is None"),
        ({"sizes": 3}, "field sizes is 3; input should be a valid array"),
        ({"no\x1b[2Jte": "x" * 999}, r"field 'no\x1b[2Jte' is unknown"),
        ({"note": "\x1b[2J" * 999, "sizes": {}}, "field sizes is {}"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_named(changes, said):
    refused(said, typed, {"inner": {"steps": 4}, **changes}, Outer, "a.json")


def test_what_mends_it_is_said():
    assert refused("field steps is missing", typed, {}, Inner, "a.json", mend="copy it again").endswith(
        "; copy it again"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON: Expecting"),
        ('{"a": 1, "a": 2}', "the key a stands there twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key b stands there twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": [1, -Infinity]}', "-Infinity is not a number"),
        ('{"a": [1, 1e999]}', "a[1]: the number is not finite"),
        ('{"a": %s}' % ("9" * 50), "a: the number is too large"),
        ('{"a": %s}' % ("9" * 5000), "is not valid JSON"),
        ('{"a": "\\ud800"}', "a: the text holds half a character"),
        ('{"\\ud800": 1}', "the text holds half a character"),
        ("[" * 100_000, f"nested more than {DEEPEST} deep"),
        ("[" * 40 + "]" * 40, f"nested more than {DEEPEST} deep"),
    ],
    ids=lambda value: value[:30],
)
def test_json_that_no_reader_should_see_is_refused(text, said):
    refused(said, parse_json, text, "a.json")


def test_a_document_is_a_regular_file_of_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"é": 1}'.encode())
    assert read_json(path) == {"é": 1}
    path.write_bytes(b'{"a": "\xff"}')
    refused("a.json is not UTF-8 text: byte 7 cannot be read", read_json, path)
    path.write_text("[1]")
    refused("does not hold a JSON object; copy it", read_json, path, mend="copy it")
    path.write_text(json.dumps({"a": "b" * 100}))
    refused("has more than 50 bytes", read_json, path, largest=50)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        refused("is not a regular file", read_text, type(path)(odd))
    refused("is missing; is this one?", read_text, tmp_path / "none", mend="is this one?")
    refused("cannot read", read_text, type(path)("a\0b"))
    (tmp_path / "loop").symlink_to("loop")
    refused("cannot read", read_text, tmp_path / "loop")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("0: a\n1.5: {b: [1, two, ~, true]}\n", {0: "a", 1.5: {"b": [1, "two", None, True]}}),
        ("- 'a: b'\n- \"c\\n\"\n- |\n  d\n", ["a: b", "c\n", "d\n"]),
        ("1:30: a", {90: "a"}),
        ("2024-13-45: a", {"2024-13-45": "a"}),
        ("a: 2024-01-02", {"a": "2024-01-02"}),
        ("a: =\n<<: b", {"a": "=", "<<": "b"}),
    ],
    ids=str,
)
def test_yaml_as_people_write_it(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.getcwd []", "has the tag"),
        ("a: !x b", "has the tag !x"),
        ("a: &b [1]\nc: *b", "line 1 has an anchor or alias"),
        ("a: *b", "line 1 has an anchor or alias"),
        ("a: .inf", "a: the number is not finite"),
        ("a: 1\n'a': 2", "line 2: the key a stands there twice"),
        ("? [a]\n: b", "line 1 has a list or a mapping for a key"),
        ("- " * 100 + "a", "line 1 is nested more than 32 deep"),
        ("[" * 100_000, "is not valid YAML"),
        ("a\n---\nb", "holds more than one document"),
        ("a: [", "is not valid YAML"),
        ("a: \0", "control characters are not allowed"),
        ("a: \x7f", "control characters are not allowed"),
        ("a: " + "1" * 5000, "has a number of 5000 characters"),
    ],
    ids=lambda value: ascii(value[:30]),
)
def test_yaml_that_can_do_something_is_refused(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    refused(said, read_yaml, tmp_path / "a.yaml")


@pytest.fixture
def tensors(tmp_path):
    """A whole file."""
    path = tmp_path / "a.safetensors"
    values = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(())}
    save_file(values, path, {"format": "pt"})
    return path


def reworded(path, **changes):
    """Another header for the same tensors; `c` lies at 24 to 28, `b` behind it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = {**json.loads(content[8 : 8 + length]), **changes}
    text = json.dumps({name: entry for name, entry in header.items() if entry is not None}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_a_header_says_names_shapes_and_notes(tensors):
    header = read_header(tensors)
    assert header.shapes == {"a": (2, 3), "b": (5,), "c": ()}
    assert header.metadata == {"format": "pt"}


def entry(shape, *offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a": entry([10**9, 10**9], 0, 24)}, "tensor a has not the bytes of its shape"),
        ({"a": entry([2, 3], 0, 10**15)}, "damaged"),
        ({"a": entry([2, -3], 0, 24)}, "tensor a lies where no tensor should"),
        ({"a": entry([2, 3], -8, 16)}, "damaged"),
        ({"a": entry([2.0, 3], 0, 24)}, "field a.shape[0] is 2.0; input should be a valid integer"),
        ({"a": None}, "lies where no tensor should"),
        ({"d": entry([1], 28, 32)}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [2, 3]}}, "field a.data_offsets is missing"),
        ({"__metadata__": {"format": 3}}, "__metadata__: field format is 3; input should be a valid string"),
        ({"__metadata__": []}, "damaged"),
    ],
    ids=str,
)
def test_a_header_that_its_bytes_do_not_hold_is_refused(tensors, changes, said):
    reworded(tensors, **changes)
    refused(said, read_header, tensors)


def test_a_file_that_is_cut_or_none_is_refused(tensors):
    whole = tensors.read_bytes()
    for count in (0, 7, 8, 40, len(whole) - 1):
        tensors.write_bytes(whole[:count])
        refused("is damaged", read_header, tensors)
    tensors.write_bytes(b"\xff" * 8 + whole[8:])
    refused("it has no whole header", read_header, tensors)
    tensors.write_bytes((4).to_bytes(8, "little") + b"\xff\xff\xff\xff")
    refused("its header is not text", read_header, tensors)
    refused("is missing; copy it", read_header, tensors.with_name("none"), mend="copy it")


def test_a_small_file_takes_little_memory_however_large_it_might_be(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * (2 * PIECE + 1))
    tracemalloc.start()
    try:
        assert len(read_bytes(path, largest=2**33)) == 2 * PIECE + 1
        assert tracemalloc.get_traced_memory()[1] < 16 * PIECE
    finally:
        tracemalloc.stop()
    refused("has more than", read_bytes, path, largest=2 * PIECE)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_neither_replaced_nor_written_to(tmp_path, kind):
    mine, path = tmp_path / "mine", tmp_path / "named"
    mine.write_text("mine")
    {"link": lambda: path.symlink_to(mine), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    before = path.lstat().st_mode
    with pytest.raises(OSError):
        atomic_write_text(path, "new")
    with pytest.raises(OSError):
        open_own(path)
    assert (path.lstat().st_mode, mine.read_text()) == (before, "mine")
    assert {each.name for each in tmp_path.iterdir()} == {"mine", "named"}


def test_a_file_of_ours_keeps_what_it_holds(tmp_path):
    os.close(open_own(tmp_path / "new", private=True))
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    (tmp_path / "new").write_text("kept")
    os.close(open_own(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "kept"
