"""How the documentation is built: without the network, and with every warning an error."""

import doctest
import inspect
import os

from docutils import nodes

import replaykit

project = "replaykit"
author = "The replaykit developers"
copyright = author
version = release = replaykit.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest", "myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True
# Single backticks in docstrings name arguments as often as objects; what has a dot or a capital must resolve.
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", r"[a-z_]+")]

# Names of other projects become links only if their inventories can be loaded, which needs the network:
# REPLAYKIT_DOCS_LINKS=1 python -m sphinx ... Without it they are shown as plain code, and a build is offline.
nitpick_ignore_regex += [(r"py:.*", r"(numpy|torch|gymnasium|threading|pathlib)\..*")]
if os.environ.get("REPLAYKIT_DOCS_LINKS"):
    extensions += ["sphinx.ext.intersphinx"]
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "gymnasium": ("https://gymnasium.farama.org", None),
    }

# The docstrings give types with shapes and units, so signatures have none
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]

# Compare error messages, too, which Sphinx does not do by default
doctest_default_flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1
# The names that docstrings use without importing them
doctest_global_setup = """
import numpy as np
from replaykit import *
"""

html_theme = "furo"
html_title = f"replaykit {version}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["replaykit.css"]


def setup(app):
    """Show the signature of `__init__` instead of `Declared.__new__`, and let drawings scroll by themselves."""

    def signature_of(_app, kind, _name, obj, _options, signature, _annotation):
        if kind == "class" and signature == "(*args, **kwargs)":
            if obj.__init__ is object.__init__:
                return "", None
            parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
            bare = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
            return str(inspect.Signature(bare)), None
        return None

    def frame_drawings(_app, doctree, _name):
        for node in doctree.findall(nodes.raw):
            if "<svg" in node.astext():
                node.replace_self(nodes.raw("", f'<div class="drawing">{node.astext()}</div>', format="html"))

    app.connect("autodoc-process-signature", signature_of)
    app.connect("doctree-resolved", frame_drawings)
