"""The site: `pip install '.[docs]' && sphinx-build -W --keep-going -b html docs docs/_build`."""

from vitcompact.version import __version__

project = "vitcompact"
release = version = __version__
copyright = "the vitcompact authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False

html_theme = "furo"
html_title = "vitcompact"
html_static_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}
