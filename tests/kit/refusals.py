"""What a command does with what cannot be."""


def assert_one_line(result, *fragments):
    """It ended with 2 and one line that holds all `fragments`."""
    assert result.exit_code == 2, result.output
    beside = "Usage", "Try", "engine: "
    lines = [line for line in result.output.splitlines() if line and not line.startswith(beside)]
    assert len(lines) == 1, result.output
    for fragment in fragments:
        assert fragment in lines[0]
