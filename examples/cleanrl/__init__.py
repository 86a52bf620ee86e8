"""Agents in single files, in the shape of CleanRL's; ``docs/how-to/cleanrl.rst`` describes them."""
