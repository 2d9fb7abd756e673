"""Settings of the documentation site: `sphinx-build -W --keep-going -b html docs docs/_build`."""

import sys
from pathlib import Path

import lamella

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "docs" / "_ext")]

project = "Lamella"
author = "The Lamella authors"
copyright = author
version = release = lamella.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "generated"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_inherit_docstrings = False  # those of torch are not ours to show
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # else what autodoc finds, such as fields of named tuples, would be there twice

html_theme = "furo"
html_title = f"Lamella {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
