"""One video on two processes is the video of one, to float32's precision, the same on both every time."""

import pytest
import torch
import torch.multiprocessing
from kit.measure import assert_close
from kit.processes.split_rollout import CASES, process, rolled_out
from kit.tiny.models import tiny_model

from plugins.errors import UserError
from runtime.engines.sequence_parallel import Split, split_over

pytestmark = pytest.mark.cpu


class Group:
    """Stands for one of several processes."""

    def __init__(self, size, rank=0):
        self._size, self._rank = size, rank

    def size(self):
        return self._size

    def rank(self):
        return self._rank


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """[process][turn][case] of latents and cache."""
    folder = tmp_path_factory.mktemp("split")
    torch.multiprocessing.spawn(process, (str(folder), 2), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_make_the_video_of_one(made, number):
    latents, cache = rolled_out(CASES[number])
    assert latents.abs().max() > 0.1
    for ours, whole in zip(made[0][0][number], (latents, cache), strict=True):
        assert_close(ours, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_both_processes_have_the_same_bits_every_time(made, number):
    first = made[0][0][number]
    for process_ in made:
        for turn in process_:
            assert all(torch.equal(one, other) for one, other in zip(turn[number], first, strict=True))


def test_each_process_has_the_same_part_of_every_frame():
    whole = torch.arange(12).view(1, 12, 1)  # two frames of six tokens
    parts = [Split(Group(3, rank), 6).part(whole).flatten().tolist() for rank in range(3)]
    assert parts == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_tokens_that_cannot_be_divided_are_refused():
    with pytest.raises(UserError, match="6 tokens of a latent frame cannot be divided among 4"):
        split_over(tiny_model(), Group(4))
