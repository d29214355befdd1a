"""fastsample in ComfyUI: searched plans, every solver of the registry, and a search on the model
that is connected. The folder is dropped into ComfyUI's custom_nodes.
"""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
