"""Single-file agents in the style of CleanRL. ``docs/how-to/cleanrl.rst`` describes them."""
