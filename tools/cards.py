"""Lists of pages as cards: a title, a sentence, a picture if the page has one, and how long it takes to read."""

import base64
import io
import re

import nbformat
from PIL import Image, ImageOps

LISTING = re.compile(r"```\{toctree\}\n:maxdepth: 1\n(?::caption: (?P<caption>[^\n]*)\n)?\n(?P<pages>.*?)```\n", re.S)
#: what a reader gets through in a minute
WORDS, CODE_LINES = 220, 60

GRID = """
:::::{{grid}} 1
:gutter: 3
:class-container: pages

{cards}
:::::
"""
CARD = """::::{{grid-item-card}} {title}
:link: /{page}
:link-type: doc
{picture}
{sentence}

:::{{card-footer}}
{minutes} min
:::
::::
"""


def with_cards(text, out):
    "A page's lists as hidden toctrees with cards; a list's caption, `Graph: what it is`, becomes a heading."
    return LISTING.sub(lambda found: section(found, out), text)


def section(found, out):
    "One list: its heading, the toctree, which the sidebar needs, and a card a page."
    title, _, about = (found["caption"] or "").partition(": ")
    head = f"## {title}\n\n" if title else ""
    about = f"{about[:1].upper()}{about[1:]}.\n\n" if about else ""
    toctree = found[0].replace(":maxdepth: 1\n", ":maxdepth: 1\n:hidden:\n").replace(found["caption"] or "\0", title)
    cards = "\n".join(card(page, out) for page in found["pages"].split())
    return head + about + toctree + GRID.format(cards=cards)


def card(page, out):
    "The card of a page in the site's sources."
    notebook = out / f"{page}.ipynb"
    if notebook.is_file():
        cells = nbformat.read(notebook, 4).cells
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
        lines = sum(len(c.source.splitlines()) for c in cells if c.cell_type == "code" and not folded(c))
        picture = thumbnail(cells, out / "_thumbs" / f"{page.replace('/', '-')}.png")
    else:
        text, lines, picture = (out / f"{page}.md").read_text(encoding="utf8"), 0, None
    return CARD.format(
        page=page,
        title=re.search(r"^# (.+)$", text, re.M)[1],
        sentence=subtitle(text),
        minutes=max(1, round(len(text.split()) / WORDS + lines / CODE_LINES)),
        picture=f":img-top: /{picture.relative_to(out).as_posix()}\n" if picture else "",
    )


def folded(cell):
    "Is a cell's code shown on request only?"
    return "hide-input" in cell.metadata.get("tags", ())


def subtitle(text):
    "The sentence under the title of a page: `> What it is.`"
    found = re.search(r"^> (.+?)(?:\n\n|\Z)", text, re.M | re.S)
    return " ".join(line.removeprefix("> ") for line in found[1].splitlines()) if found else ""


def thumbnail(cells, path, width=360):
    "The first picture that a notebook is stored with: without margins, its left part if it is wide; None: no picture."
    outputs = (out for cell in cells for out in cell.get("outputs", ()))
    found = next((out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})), None)
    if not found:
        return None
    picture = Image.open(io.BytesIO(base64.b64decode(found))).convert("RGB")
    path.parent.mkdir(exist_ok=True)
    picture = picture.crop(ImageOps.invert(picture).getbbox())
    picture = picture.crop((0, 0, min(picture.width, round(1.7 * picture.height)), picture.height))
    picture.thumbnail((width, width))
    picture.quantize(48).save(path, optimize=True)
    return path
