"""An example of fastsample behind HTTP, on Ray Serve: `python -m examples.ray_serve --help`."""
