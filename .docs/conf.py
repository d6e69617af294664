"""The documentation site, for Sphinx; `build.py` gathers its pages."""

from quantolab import __version__

project, author, version, release = "quantolab", "quantolab", __version__, __version__
copyright = "quantolab's authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"quantolab {__version__}"
html_static_path: list[str] = []
html_show_sphinx = False
exclude_patterns = ["build.py"]
nb_execution_mode = "off"  # pages show what was really run, panels too
nb_output_stderr = "remove"
nb_mime_priority_overrides = [
    ("html", "application/vnd.jupyter.widget-view+json", None),  # a panel's own still picture
]
myst_heading_anchors = 3
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "none"  # signatures have them already
suppress_warnings = ["mystnb.unknown_mime_type"]
copybutton_prompt_text = ">>> "
