"""A grid of seeds: each tile is the video that its seed gives alone."""

import numpy as np
import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line
from PIL import Image

from runtime.cli.grid import Mosaic, side_by_side
from runtime.cli.run import main
from runtime.outputs import NullSink

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"


def run(checkpoint, *more):
    words = [
        "--checkpoint",
        checkpoint,
        "--prompt",
        PROMPT,
        "--chunks",
        2,
        "--scale",
        1,
        "--threads",
        1,
        *more,
    ]
    return CliRunner().invoke(main, [str(word) for word in words])


def pictures(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_each_tile_is_the_video_of_its_seed(checkpoint, tmp_path):
    made = run(checkpoint, "--grid", "2x2", "--seed", 5, "-o", tmp_path / "grid")
    assert made.exit_code == 0, made.output
    assert "seeds 5 to 8" in made.output and "24 frames of 4 videos" in made.output
    grid = pictures(tmp_path / "grid")
    height, width = (side // 2 for side in grid.shape[1:3])
    for seed, (row, column) in {5: (0, 0), 8: (1, 1)}.items():
        assert run(checkpoint, "--seed", seed, "-o", tmp_path / f"{seed}").exit_code == 0
        tile = grid[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert np.array_equal(tile, pictures(tmp_path / f"{seed}"))


def test_what_cannot_be_is_refused_in_one_line(checkpoint, tmp_path):
    grid = tmp_path / "grid.mp4"
    for words, said in (
        (("--grid", "2"), "ROWSxCOLUMNS"),
        (("--grid", "1x1"), "2 to 64"),
        (("--grid", "9x9"), "2 to 64"),
        (("--grid", "1x2", "--overwrite"), "leave out --overwrite"),
        (("--grid", "1x2"), "give -o"),
        (("--grid", "1x2", "-o", "-"), "stream"),
    ):
        done = run(checkpoint, *words)
        assert done.exit_code == 2 and said in done.output.splitlines()[-1]
    grid.touch()
    assert_one_line(run(checkpoint, "--grid", "1x2", "-o", grid), "exists already")
    assert grid.read_bytes() == b""


def test_a_plan_makes_nothing(checkpoint, tmp_path):
    planned = run(checkpoint, "--grid", "1x2", "--dry-run", "-o", tmp_path / "grid.mp4")
    assert planned.exit_code == 0 and "seeds 0 to 1" in planned.output and not list(tmp_path.iterdir())


class Full(NullSink):
    def write(self, frames):
        raise OSError("full")


def test_videos_of_different_lengths_make_what_all_have_and_a_full_disk_ends_all():
    mosaic = Mosaic(NullSink(), 1, 2)
    left, right = mosaic.tiles
    left.write(np.zeros((5, 4, 4, 3), np.uint8))
    assert mosaic.frames == 0
    right.write(np.zeros((3, 4, 4, 3), np.uint8))
    assert (mosaic.frames, left.mark(), right.mark()) == (3, {"frames": 5}, {"frames": 3})
    full = Mosaic(Full(), 1, 2)
    full.tiles[0].write(np.zeros((1, 4, 4, 3), np.uint8))
    for tile in (full.tiles[1], full.tiles[0]):
        with pytest.raises(OSError, match="full"):
            tile.write(np.zeros((1, 4, 4, 3), np.uint8))


def test_tiles_lie_row_by_row():
    videos = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1, 1).repeat(2, 1).repeat(3, 4)
    assert side_by_side(videos, 2, 3)[1, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
