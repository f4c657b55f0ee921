"""A pipeline that is used as diffusers' WanPipeline is, and the same model in ComfyUI's nodes."""

import inspect
import sys
from types import ModuleType

import av
import numpy as np
import pytest
import torch

from plugins.errors import UserError
from runtime import VideoPipeline
from runtime.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from runtime.diffusers_arguments import WanArguments
from runtime.rollout.decoding import NOTHING

pytestmark = pytest.mark.cpu

RED = "a red star bouncing on a navy background"
INTERFACE = {"STRING", "INT", "FLOAT", "BOOLEAN", "IMAGE", "VIDEOMLA_PIPELINE"}
"""ComfyUI's types that these nodes use, and their own."""


@pytest.fixture(scope="module")
def plain(pipeline):
    return np.concatenate(list(pipeline(RED, seconds=20 / 16, seed=3)))


def test_it_takes_and_gives_what_a_wan_pipeline_does(pipeline, plain):
    generator = torch.Generator().manual_seed(3)
    output = pipeline(
        prompt=[RED], negative_prompt="", height=64, width=64, num_frames=20, guidance_scale=1.0,
        num_inference_steps=2, generator=generator,
    )  # fmt: skip
    assert output.frames.shape == (1, 20, 64, 64, 3)
    assert output.frames.dtype == np.float32
    assert np.array_equal((output.frames[0] * 255).round().astype(np.uint8), plain)
    assert output.frames is output.frames
    again = pipeline(RED, num_frames=20, generator=generator, output_type="pt", return_dict=False)
    assert np.array_equal(again[0].permute(0, 1, 3, 4, 2).numpy(), output.frames)
    images = pipeline(RED, num_frames=20, seed=3, output_type="pil").frames
    assert [len(images), len(images[0])] == [1, 20]
    assert np.array_equal(np.stack([np.asarray(image) for image in images[0]]), plain)


def test_its_names_are_wans_own():
    from diffusers import WanPipeline

    theirs = inspect.signature(WanPipeline.__call__).parameters
    ours = {*WanArguments.__annotations__, "prompt", "return_dict"}
    assert ours - theirs.keys() == set()
    assert ours <= {*inspect.signature(VideoPipeline.__call__).parameters, *WanArguments.__annotations__}


def test_latents_are_the_ones_that_the_frames_are_made_of(pipeline, plain, checkpoint):
    latents = pipeline(RED, num_frames=20, seed=3, output_type="latent").frames
    assert latents.shape == (1, 4, 5, 8, 8)  # four frames each, of which the last chunk needs two more
    with torch.inference_mode():
        frames, _ = pipeline._job.checkpoint.codec().decode(latents)
    assert np.abs((frames[0].permute(0, 2, 3, 1) * 255).round().numpy() - plain.astype(float)).max() <= 1
    with VideoPipeline.from_pretrained(checkpoint, device="cpu", decoder=NOTHING) as silent:
        assert torch.equal(silent(RED, num_frames=20, seed=3, output_type="latent").frames, latents)
        with pytest.raises(UserError, match="no frames are made"):
            assert silent(RED, num_frames=20).frames


def test_a_callback_sees_each_chunk_and_may_end_the_video(pipeline, plain):
    told = []

    def see(pipe, step, timestep, tensors):
        told.append((step, timestep, tensors["latents"].shape))
        pipe._interrupt = step == 2
        return tensors

    whole = pipeline(RED, num_frames=20, seed=3, callback_on_step_end=see).frames
    assert told == [(0, 0.0, (1, 4, 3, 8, 8)), (1, 0.0, (1, 4, 3, 8, 8))]
    assert np.array_equal((whole[0] * 255).round().astype(np.uint8), plain)
    told.clear()
    ended = pipeline(RED, num_frames=200, seed=3, callback_on_step_end=see).frames
    assert len(told) == 3
    assert ended.shape[1] == 36
    assert len(pipeline(RED, num_frames=12, seed=3).frames[0]) == 12


def test_what_the_model_cannot_do_is_refused_in_a_line(pipeline):
    for said, why in (
        ({"negative_prompt": "blurry"}, "sampled without guidance"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"height": 480, "width": 832}, "480 x 832 are asked for; the model's are 64 x 64"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"output_type": "gif"}, "use one of np, pil, pt, latent"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "2 generators for one video"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "there are only latents"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=why):
            pipeline(RED, **said)
    with pytest.raises(UserError, match="2 prompts in one call"):
        pipeline([RED, RED])
    with pytest.raises(TypeError, match="'guidance'"):
        pipeline(RED, guidance=5.0)


def test_guidance_and_its_negative_prompt_are_the_samplers(pipeline, plain):
    guided = {"num_frames": 12, "seed": 3, "guidance_scale": 5.0}
    free, told = (pipeline(RED, **guided, negative_prompt=text).frames for text in (None, ["blurry"]))
    assert not np.array_equal(free, told)
    assert np.abs(free[0] * 255 - plain[:12]).max() > 1
    same = pipeline(RED, **guided | {"guidance_scale": 1.0}).frames
    assert np.array_equal((same[0] * 255).round().astype(np.uint8), plain[:12])


# ComfyUI, of which only the few functions are there that the nodes call.


class Bar:
    seen = []

    def __init__(self, total, node_id=None):
        self.total = total

    def update_absolute(self, value, total=None, preview=None):
        kind, image, pixels = preview
        Bar.seen.append((value, self.total, kind, image.size, pixels))


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """Stand-ins for ComfyUI's modules, as far as a node sees them; gives what a test may change."""
    utils, management, paths = (
        ModuleType(name) for name in ("comfy.utils", "comfy.model_management", "folder_paths")
    )
    utils.ProgressBar, Bar.seen = Bar, []
    management.throw_exception_if_processing_interrupted = lambda: None
    paths.get_output_directory = lambda: str(tmp_path)

    def get_save_image_path(prefix, folder, width=0, height=0):
        count = len(list(tmp_path.glob("*.mp4"))) + 1
        return folder, prefix, count, "", prefix

    paths.get_save_image_path = get_save_image_path
    for module in (ModuleType("comfy"), utils, management, paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return management


def run_node(name, **inputs):
    """Call a node as ComfyUI's executor does, after checking what it declares."""
    node = NODE_CLASS_MAPPINGS[name]()
    given = node.INPUT_TYPES()
    assert (
        given["required"].keys()
        <= inputs.keys()
        <= given["required"].keys() | given.get("optional", {}).keys()
    )
    return getattr(node, node.FUNCTION)(**inputs)


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_a_node_declares_what_comfyui_asks_of_it(name):
    node = NODE_CLASS_MAPPINGS[name]
    assert node.CATEGORY == "VideoMLA"
    assert isinstance(node.RETURN_TYPES, tuple)
    assert set(node.RETURN_TYPES) <= INTERFACE
    assert len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
    assert node.RETURN_TYPES or node.OUTPUT_NODE
    inputs = node.INPUT_TYPES()
    assert {"required"} <= inputs.keys() <= {"required", "optional", "hidden"}
    every = inputs["required"] | inputs.get("optional", {})
    for kind, *options in every.values():
        assert isinstance(kind, list) or kind in INTERFACE
        assert all(isinstance(option, dict) for option in options)
    takes = inspect.signature(getattr(node, node.FUNCTION)).parameters
    assert list(takes)[1:] and set(takes) - {"self"} == every.keys()
    assert all(takes[name].default != inspect.Parameter.empty for name in inputs.get("optional", {}))
    assert NODE_DISPLAY_NAME_MAPPINGS.keys() == NODE_CLASS_MAPPINGS.keys()


def test_a_graph_loads_samples_with_previews_and_saves(comfy, checkpoint, plain, tmp_path):
    (loaded,) = run_node("VideoMLALoad", checkpoint=str(checkpoint), device="cpu", dtype="auto")
    asked = {"pipeline": loaded, "prompt": RED, "seconds": 20 / 16, "seed": 3, "steps": 0}
    (images,) = run_node("VideoMLASample", **asked)
    assert images.dtype == torch.float32
    assert np.array_equal((images * 255).round().numpy().astype(np.uint8), plain)
    assert Bar.seen == [(1, 2, "JPEG", (64, 64), 512), (2, 2, "JPEG", (64, 64), 512)]
    told = run_node("VideoMLASave", images=images, filename_prefix="star")
    streamed = run_node("VideoMLASampleToFile", **asked, filename_prefix="star")
    assert told == {
        "ui": {
            "images": [{"filename": "star_00001_.mp4", "subfolder": "", "type": "output"}],
            "animated": (True,),
        }
    }
    for result in (told, streamed):
        with av.open(str(tmp_path / result["ui"]["images"][0]["filename"])) as file:
            assert sum(1 for _ in file.decode(video=0)) == 20
    loaded.close()


def test_a_cancelled_node_keeps_what_is_written_and_ends_the_video(comfy, pipeline, tmp_path):
    class Interrupted(Exception):  # noqa: N818 - as ComfyUI's own
        pass

    def throw():
        if len(Bar.seen) == 2:
            raise Interrupted

    comfy.throw_exception_if_processing_interrupted = throw
    asked = {"pipeline": pipeline, "prompt": RED, "seconds": 60.0, "seed": 3, "steps": 0}
    with pytest.raises(Interrupted):
        run_node("VideoMLASampleToFile", **asked, filename_prefix="star")
    with av.open(str(tmp_path / "star_00001_.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 12
