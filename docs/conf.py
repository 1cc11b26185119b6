"""Sphinx: Markdown pages by MyST, the Furo theme, nothing from the network."""

from __future__ import annotations

project = "Oarlock"
author = "The Oarlock authors"
copyright = "The Oarlock authors, Apache-2.0"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
html_theme = "furo"
html_title = "Oarlock"
html_copy_source = False
myst_heading_anchors = 3
# links to files of the repository (LICENSE, src/...) are for readers of the checkout, not pages
suppress_warnings = ["myst.xref_missing"]
exclude_patterns = ["_build"]
