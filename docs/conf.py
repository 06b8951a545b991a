"""How Sphinx builds these pages (`make docs`): Markdown through MyST, nothing loaded from elsewhere."""

project = "quatrefoil"
author = "the quatrefoil authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "quatrefoil"
myst_heading_anchors = 2  # links to a page's headings, by the names that GitHub gives them
