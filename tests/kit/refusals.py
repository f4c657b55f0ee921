"""What a command or a call does with what cannot be."""

import pytest

from plugins.errors import UserError


def refusal(call):
    """The one line that a mistake of the user ends in."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_one_line(result, *fragments):
    """It ended with 2 and one line that holds all `fragments`."""
    assert result.exit_code == 2, result.output
    beside = "Usage", "Try", "engine: ", "device: "
    lines = [line for line in result.output.splitlines() if line and not line.startswith(beside)]
    assert len(lines) == 1, result.output
    for fragment in fragments:
        assert fragment in lines[0]


def said(result):
    """The lines that a command said, but for that of the device, which another machine may have."""
    return [line for line in result.output.splitlines() if not line.startswith("device: ")]
