"""A node pack for ComfyUI: load a checkpoint, sample chunk by chunk with a preview, save.

Install this project into ComfyUI's Python and link this folder into its `custom_nodes`:

    ln -s $(python -c "import runtime.comfyui as pack; print(pack.__path__[0])") custom_nodes/videomla
"""

from __future__ import annotations

from runtime.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
