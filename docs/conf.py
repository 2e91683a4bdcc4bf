"""The site: pages of docs/, the notebooks with the outputs that they are stored with, and the API from docstrings.

Built from _proc/, which tools/notebooks.py writes. Nothing is executed and nothing is fetched.
"""

import inspect
import re
import sys
from configparser import ConfigParser
from dataclasses import is_dataclass
from pathlib import Path

import plotly
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from fastcore.docments import docments, empty
from pydantic import BaseModel
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf8")
settings = settings["DEFAULT"]

project = settings["title"]
author = settings["author"]
copyright = settings["copyright"]
version = release = settings["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
viewcode_follow_imported_members = False
exclude_patterns = ["_static"]
default_role = "code"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables in outputs too
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"
suppress_warnings = [
    "mystnb.unknown_mime_type",
    "ref.python",
]  # a word of a docstring may name two classes: then there is no link

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
toc_object_entries_show_parents = "hide"
add_module_names = False

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static", str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js")]
html_css_files = ["site.css"]
html_js_files = [("figures.js", {"defer": "defer"})]
html_favicon = "_static/mark.svg"
html_show_sourcelink = False
html_sidebars = {
    page: [] for page in ("index", "tutorial", "nbs/guides/benchmarks", "design", "changelog", "contributing")
}
html_theme_options = {
    "logo": {"image_light": "_static/mark.svg", "image_dark": "_static/mark.svg", "text": project},
    "navbar_align": "left",
    "show_toc_level": 2,
    "show_nav_level": 1,
    "header_links_before_dropdown": 6,
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}


def rst(text):
    "Markdown of a docstring as reStructuredText: code in backticks stays code, other markup is escaped."
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(f"`{p}`" if i % 2 else re.sub(r"([\\*_|])", r"\\\1", p) for i, p in enumerate(parts))


def type_name(anno):
    "A type as it is written in the source."
    if anno in (empty, inspect.Parameter.empty):
        return ""
    text = anno if isinstance(anno, str) else inspect.formatannotation(anno)
    for long, short in {
        "pathlib.": "",
        "numpy.": "np.",
        "pandas.core.frame.": "pd.",
        "typing.": "",
        "gnn_ecommerce.": "",
    }.items():
        text = text.replace(long, short)
    return re.sub(r"Literal\[([^]]*)\]", lambda m: m[1].replace(", ", " | "), text)


def parameters(obj):
    "A field list of what a function's docments say of its parameters and of what it returns."
    lines = []
    try:
        found = docments(obj, full=True)
    except Exception:
        return lines
    for name, doc in found.items():
        text, kind = rst(str(doc.docment or "").replace("\n", " ")), type_name(doc.anno)
        if name in ("self", "cls") or not (text or kind) or (name, text, kind) == ("return", "", "None"):
            continue
        if name == "return":
            lines += [f":returns: {text}"] * bool(text) + [f":rtype: {rst(kind)}"] * bool(kind)
            continue
        if doc.default not in (empty, inspect.Parameter.empty):
            text += f" (default ``{doc.default!r}``)" if len(repr(doc.default)) < 60 else ""
        lines += [f":param {name}: {text}"] + [f":type {name}: {rst(kind)}"] * bool(kind)
    return lines


def fields(cls):
    "A field list of a settings class: key, type, default, meaning."
    lines = []
    for name, field in cls.model_fields.items():
        if name in getattr(cls.__base__, "model_fields", ()):
            continue
        default = "" if field.is_required() else f" (default ``{field.default!r}``)"
        lines += [
            f":param {name}: {rst(field.description or '')}{default}",
            f":type {name}: {rst(type_name(field.annotation))}",
        ]
    return lines


def process_docstring(app, what, name, obj, options, lines):
    body = [rst(line) for line in lines]
    if what == "class" and issubclass(obj, BaseModel):
        body = [*body, "", *fields(obj)]
    elif what == "class" and (is_dataclass(obj) or getattr(obj.__init__, "__module__", "").startswith("gnn_ecommerce")):
        body = [*body, "", *parameters(obj if is_dataclass(obj) else obj.__init__)]
    elif what in ("function", "method"):
        body = [*body, "", *parameters(obj)]
    lines[:] = [*body, ""]


def process_signature(app, what, name, obj, options, signature, returns):
    if what == "class" and issubclass(obj, BaseModel):
        return "", None
    return None


#: what docutils does not know, in words that it does
TEX = {r"\\dots\b": r"\\ldots", r"\\[bB]ig(?![a-zA-Z])": ""}


def mathml(self, node):
    "A formula as MathML, which browsers draw themselves: no script, no network."
    tex, block = node.astext(), isinstance(node, nodes.math_block)
    for old, new in TEX.items():
        tex = re.sub(old, new, tex)
    try:
        html = tex2mathml(tex, as_block=block)
    except MathError as err:
        logging.getLogger(__name__).warning("%s: %s", err, tex, location=node)
        html = f"<code>{self.encode(tex)}</code>"
    self.body.append(f'<div class="formula">{html}</div>' if block else html)
    raise nodes.SkipNode


class HomePicture(SphinxDirective):
    "The picture of the home page, drawn now."

    def run(self):
        import home_picture

        return [nodes.raw("", home_picture.html(), format="html")]


class HousePicture(SphinxDirective):
    "The picture of chapters and folders, drawn now."

    def run(self):
        import house

        return [nodes.raw("", house.html(), format="html")]


def setup(app):
    app.add_directive("home-picture", HomePicture)
    app.add_directive("house-picture", HousePicture)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
