"""The site: pages of docs/, the notebooks with the outputs that they are stored with, and the API from docstrings.

Built from _proc/, which tools/notebooks.py writes. Nothing is executed and nothing is fetched.
"""

import inspect
import os
import re
import sys
from configparser import ConfigParser
from dataclasses import is_dataclass
from html import escape
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
from notebooks import module, numbered  # noqa: E402

settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf8")
settings = settings["DEFAULT"]

project = settings["title"]
author = settings["author"]
copyright = settings["copyright"]
version = release = settings["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_design"]
viewcode_follow_imported_members = False
exclude_patterns = ["_static"]
default_role = "code"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables in outputs too
nb_ipywidgets_js = {}
nb_code_prompt_show = nb_code_prompt_hide = "Code"
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
html_baseurl = os.environ.get("SITE_URL", "")  # where it is published, with a slash at its end: for 404.html
html_search_scorer = str(ROOT / "docs" / "scorer.js")
html_context = {
    "edit_page_provider_name": "GitHub",
    "edit_page_url_template": "https://github.com/{user}/{repo}/edit/{branch}/".format(**settings)
    + "{{ source_of(file_name) }}",
}
html_static_path = ["_static", str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js")]
html_css_files = ["site.css"]
html_js_files = [("figures.js", {"defer": "defer"})]
html_favicon = "_static/mark.svg"
html_show_sourcelink = False
html_sidebars = {
    page: [] for page in ("index", "404", "tutorial", "nbs/guides/benchmarks", "design", "changelog", "contributing")
}
html_theme_options = {
    "logo": {"image_light": "_static/mark.svg", "image_dark": "_static/mark.svg", "text": project},
    "navbar_align": "left",
    "show_toc_level": 2,
    "show_nav_level": 1,
    "header_links_before_dropdown": 6,
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
    "secondary_sidebar_items": {"**": ["page-toc", "edit-this-page"], "index": []},
    "use_edit_page_button": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def edited(page):
    "The file of the project that a page of the site is written in."
    if page.startswith("nbs/"):
        return page
    if page.startswith("api/"):
        return (
            "nbs/"
            + next(f for f in numbered() if f"api/{module(f).replace('.', '/')}.md" == page)
            .relative_to(ROOT / "nbs")
            .as_posix()
        )
    return page.upper().replace(".MD", ".md") if page in ("changelog.md", "contributing.md") else f"docs/{page}"


def describe(app, page, template, context, doctree):
    "What search engines show of a page, its first sentence; where it is edited; where home is, for 404.html."
    texts = (p.astext() for p in doctree.findall(nodes.paragraph)) if doctree else ()
    text = next((t for t in texts if not t.startswith("Written in the notebook")), settings["description"])
    context["source_of"] = edited
    tag = f'<meta name="description" content="{escape(" ".join(text.split())[:200])}">'
    context["metatags"] = context.get("metatags", "") + tag
    if page == "404" and app.config.html_baseurl:
        context["metatags"] += f'<base href="{escape(app.config.html_baseurl)}">'


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


#: page: how many of its sections are open when it opens
OPEN = {"nbs/guides/benchmarks": 2}


def fold(app, doctree):
    "Fold the later sections of a long page, below their headings. A link to a place inside opens them."
    page = app.env.current_document.docname
    sections = [child for child in doctree[0].children if isinstance(child, nodes.section)] if page in OPEN else []
    for section in sections[OPEN.get(page, 0) :]:
        section.insert(1, nodes.raw("", '<details class="more"><summary>Show</summary>', format="html"))
        section.append(nodes.raw("", "</details>", format="html"))


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
    app.connect("doctree-read", fold)
    app.connect("html-page-context", describe)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
