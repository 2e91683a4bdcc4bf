"""Notebooks as README, site pages and new notebooks: nbdev's directives are stripped here and nowhere else.

python tools/notebooks.py export        the package from the notebooks, by nbdev, no line of it above 120 characters
python tools/notebooks.py readme        README.md from nbs/index.ipynb
python tools/notebooks.py site          the site's sources in _proc/, from docs/ and nbs/
python tools/notebooks.py new 13 NAME [--folder shop]   a new chapter, or a part in a folder, from nbs/_template.ipynb
python tools/notebooks.py shrink FILE   the plots stored in a notebook, with fewer colours: a third of the bytes
python tools/notebooks.py lock          requirements.lock from the environment
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from importlib import metadata
from pathlib import Path

import nbformat
import yaml
from cards import with_cards
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
DIRECTIVE = re.compile(r"\s*#\s*\|")
ALL = re.compile(r"^__all__ = \['.*?\]$", re.M | re.S)
HIDDEN = {"hide", "default_exp"}
ANCHOR = re.compile(r"(\]\((?:[\w./-]+\.ipynb)?)#([^)\s]+)\)")
#: guides of which a reader wants the results: their code is folded
RESULTS = {"benchmarks", "eda", "explorer", "monitoring", "tuning"}
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"


def notebooks(root=ROOT):
    "Every notebook of the project: the chapters, the index, then the parts folder by folder."
    shown = (
        f
        for f in (root / "nbs").rglob("*.ipynb")
        if not any(p.startswith(("_", ".")) for p in f.relative_to(root).parts)
    )
    return sorted(shown, key=lambda f: (len(f.relative_to(root).parts), f.name == "index.ipynb", f.as_posix()))


def numbered(root=ROOT):
    "Notebooks that export a module: chapters and parts."
    return [f for f in notebooks(root) if re.match(r"\d\d_", f.name)]


def directives(cell):
    "nbdev's directives at the head of a code cell: `#| export` gives {'export'}, `#| eval: false` {'eval'}."
    names = set()
    for line in cell.source.splitlines() if cell.cell_type == "code" else ():
        if line.strip() and not DIRECTIVE.match(line):
            break
        names.update(re.findall(r"^[\w-]+", DIRECTIVE.sub("", line).strip()))
    return names


def strip(nb, folded=False):
    "The notebook as a reader should see it: no directives, no hidden cells, no empty ones; imports or all code folded."
    cells = []
    for cell in nb.cells:
        flags = directives(cell)
        if flags & HIDDEN:
            continue
        if flags:
            cell.source = "\n".join(line for line in cell.source.splitlines() if not DIRECTIVE.match(line)).strip("\n")
        if not cell.source.strip():
            continue
        if cell.cell_type == "markdown":
            cell.source = ANCHOR.sub(lambda m: f"{m[1]}#{slug(m[2])})", cell.source)
        if cell.cell_type == "code":
            cell.outputs = [out for out in map(for_a_page, cell.outputs) if out]
            if folded or cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata["tags"] = [*cell.metadata.get("tags", ()), "hide-input"]
        cells.append(cell)
    nb.cells = cells
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return nb


def slug(heading):
    "The anchor of a heading on the site and on GitHub; JupyterLab's is `How-good-is-it?`, theirs `how-good-is-it`."
    return re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-"))


def for_a_page(out):
    "An output as a page without a kernel shows it: a plotly figure for figures.js, no widgets; None: nothing to show."
    data = out.get("data", {})
    if WIDGET in data:
        return None
    if PLOTLY in data:
        figure = data.pop(PLOTLY)
        height = figure.get("layout", {}).get("height", 400)
        text = json.dumps({k: figure[k] for k in ("data", "layout") if k in figure}).replace("</", "<\\/")
        script = f'<script type="application/json">{text}</script>'
        data["text/html"] = f'<div class="plotly-figure" style="height:{height}px">{script}</div>'
    return out


def export(root=ROOT):
    "Export the notebooks with nbdev. It wraps `__all__` at 120, but does not count what stands before the names."
    code = "from nbdev.doclinks import nbdev_export; nbdev_export()"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    fill = partial(textwrap.fill, width=120, subsequent_indent=" " * len("__all__ = ["))
    for file in (root / "gnn_ecommerce").rglob("*.py"):
        text = file.read_text(encoding="utf8")
        wrapped = ALL.sub(lambda names: fill(" ".join(names[0].split())), text)
        if wrapped != text:
            file.write_text(wrapped, encoding="utf8")


def readme(root=ROOT):
    "Text of README.md."
    from nbconvert import MarkdownExporter

    nb = strip(nbformat.read(root / "nbs" / "index.ipynb", 4))
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"\n{3,}", "\n\n", text.strip())
    text = re.sub(r"\]\((?!\w+:|#)(?:(\.\./)|)", lambda m: "](" if m[1] else "](nbs/", text)
    head, _, rest = text.partition("\n")
    return (
        f"{head}\n\n<!-- Written by `make check` from nbs/index.ipynb. Edit the notebook, not this file. -->\n{rest}\n"
    )


def write_readme(root=ROOT):
    (root / "README.md").write_text(readme(root), encoding="utf8")


def site(root=ROOT, out=None):
    "The site's sources: the pages of docs/, and each notebook stripped under the name that it has in nbs/."
    out = Path(out or root / "_proc")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(root / "docs", out)
    for file in notebooks(root):
        if file.name == "index.ipynb":
            continue
        page = out / file.relative_to(root)
        page.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(strip(nbformat.read(file, 4), folded=file.stem in RESULTS), page)
    for file in (root / "nbs").rglob("*.yaml"):
        shutil.copy(file, out / file.relative_to(root))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(root / name, out / name.lower())
    write_api(root, out)
    for page in (out / "guides.md", out / "notebooks.md"):
        page.write_text(with_cards(page.read_text(encoding="utf8"), out), encoding="utf8")
    write_words(out)
    return out


def write_words(out):
    "The site's index: what docs/words.yaml says that people look for, below the title of the page that answers."
    for page, words in yaml.safe_load((out / "words.yaml").read_text(encoding="utf8")).items():
        entry = f"```{{index}} {', '.join(f'! {word}' for word in words)}\n```"
        file = out / f"{page}.ipynb"
        if file.is_file():
            nb = nbformat.read(file, 4)
            nb.cells.insert(1, nbformat.v4.new_markdown_cell(entry))
            nbformat.write(nb, file)
        else:
            file = file.with_suffix(".md")
            head, _, rest = file.read_text(encoding="utf8").partition("\n")
            file.write_text(f"{head}\n\n{entry}\n{rest}", encoding="utf8")


def write_api(root, out):
    "A reference page for each module, in the folders of the package, and the list of them."
    pages = []
    for file in numbered(root):
        name = module(file, root)
        page = out / "api" / f"{name.replace('.', '/')}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        notebook = file.relative_to(root).with_suffix("").as_posix()
        page.write_text(API_PAGE.format(name=name, notebook=notebook), encoding="utf8")
        pages.append(page.relative_to(out).with_suffix("").as_posix())
    listing = (out / "api.md").read_text(encoding="utf8")
    (out / "api.md").write_text(listing.replace("MODULES\n", "".join(f"{page}\n" for page in pages)), encoding="utf8")


def module(file, root=ROOT):
    "Module that a numbered notebook exports: graph/01_interactions.ipynb gives graph.interactions."
    *folders, name = file.relative_to(root / "nbs").with_suffix("").parts
    return ".".join((*folders, re.sub(r"^\d\d_", "", name)))


API_PAGE = """# {name}

Written in the notebook [{notebook}](/{notebook}.ipynb).

```{{eval-rst}}
.. automodule:: gnn_ecommerce.{name}
```
"""


def listed(root=ROOT):
    "Notebook pages that the site's lists name, such as 'nbs/00_core'."
    text = "\n".join(f.read_text(encoding="utf8") for f in (root / "docs").rglob("*.md"))
    return re.findall(r"^(?:.*<)?(nbs/[\w/-]+)>?$", text, re.M)


#: what only the notebook of a stage has, in the template
STAGE_ONLY = ("run_NAME", "SETTINGS", "StageSettings", "## Settings", "## The stage", "params = ''")


def new(number, name, stage=False, folder="", root=ROOT):
    "Start nbs/<folder>/<number>_<name>.ipynb and list it on the site. Says what to do next."
    if not re.fullmatch(r"\d\d", number):
        sys.exit(f"N: expected two digits, such as 08, found {number!r}")
    if folder and not (root / "nbs" / folder).is_dir():
        sys.exit(f"FOLDER: expected a folder of nbs/, such as shop, found {folder!r}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        sys.exit(f"NAME: expected a module name, such as model_server, found {name!r}")
    path = root / "nbs" / folder / f"{number}_{name}.ipynb"
    taken = [
        f.name for f in path.parent.glob("*.ipynb") if f.name.startswith(f"{number}_") or f.stem.endswith(f"_{name}")
    ]
    if taken:
        sys.exit(f"{path.name}: expected a number and a name that are free, found {', '.join(taken)}")
    nb = nbformat.read(root / "nbs" / "_template.ipynb", 4)
    if not stage:
        nb.cells = [c for c in nb.cells if not any(word in c.source for word in STAGE_ONLY)]
    title, camel = name.replace("_", " ").capitalize(), "".join(w.capitalize() for w in name.split("_"))
    module_name = f"{folder.replace('/', '.')}.{name}" if folder else name
    for cell in nb.cells:
        text = cell.source.replace("TITLE", title).replace("SETTINGS", f"{camel}Settings")
        for word in ("default_exp NAME", "gnn_ecommerce.NAME"):
            text = text.replace(word, word.replace("NAME", module_name))
        cell.source = text.replace("NAME", name)
    write_clean(nb, path)
    place = path.relative_to(root).with_suffix("").as_posix()
    list_page(root / "docs" / "notebooks.md", place)
    print(
        f"{place}.ipynb is there, and docs/notebooks.md lists it. Write it in JupyterLab (make lab), then: make check"
    )
    if stage:
        print(
            f"A stage also needs: {name} in SECTIONS and STAGES (nbs/00_core.ipynb), "
            "a section in params.yaml, a stage in dvc.yaml"
        )


def write_clean(nb, path):
    "Write a notebook as nbdev_clean leaves it."
    from execnb.nbio import dict2nb, write_nb
    from nbdev.clean import _nbdev_clean

    nb = dict2nb(nb)
    _nbdev_clean(nb)
    write_nb(nb, path)


def shrink(path, colours=96):
    "Store the plots of a notebook as PNG with a palette. Pictures that would not become smaller stay."
    import base64
    import io

    from PIL import Image

    nb = nbformat.read(path, 4)
    for out in (o for cell in nb.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})):
        before, small = base64.b64decode(out.data["image/png"]), io.BytesIO()
        Image.open(io.BytesIO(before)).convert("RGB").quantize(
            colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        ).save(small, "PNG", optimize=True)
        if small.tell() < len(before):
            out.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    write_clean(nb, Path(path))


def list_page(page, entry):
    "Put a numbered notebook's entry in its place in the list of its folder."
    lines = page.read_text(encoding="utf8").splitlines()
    folder = entry.rpartition("/")[0]
    same = [i for i, line in enumerate(lines) if re.fullmatch(rf"{folder}/\d\d_\w+", line)]
    before = [i for i in same if lines[i] < entry]
    lines.insert(before[-1] + 1 if before else same[0], entry)
    page.write_text("\n".join(lines) + "\n", encoding="utf8")


#: Debian 12's Python, the oldest that the lock must install on
OLDEST = "3.11.2"


def runs_on_oldest(dist):
    "Does an installed distribution say that it runs on the oldest Python?"
    return SpecifierSet(dist.metadata["Requires-Python"] or "").contains(OLDEST)


def lock(root=ROOT):
    "Write requirements.lock from this environment: every version, no origins, none too new for the oldest Python."
    strict = [
        f"{d.name} {d.version} (Python {d.metadata['Requires-Python']})"
        for d in metadata.distributions()
        if not runs_on_oldest(d)
    ]
    if strict:
        sys.exit(
            f"expected versions that run on Python {OLDEST}, found {', '.join(strict)}: "
            "install older ones, then make lock"
        )
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude-editable"], capture_output=True, text=True, check=True
    ).stdout
    lines = []
    for line in frozen.splitlines():
        name, at, _ = line.partition(" @ ")
        if at:
            sys.exit(f"{name}: expected a released version, found one from a file or an address")
        lines.append(re.sub(r"\+[\w.]+$", "", line))
    head = (
        "# Every version that the project is tested with. `make lock` writes this file; pip reads it as constraints.\n"
    )
    (root / "requirements.lock").write_text(head + "\n".join(lines) + "\n", encoding="utf8")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("export", "readme", "site", "lock"):
        commands.add_parser(name)
    command = commands.add_parser("new")
    command.add_argument("number")
    command.add_argument("name")
    command.add_argument("--folder", default="", help="the folder of a part; none: a chapter")
    command.add_argument("--stage", action="store_true", help="the notebook of a pipeline stage")
    commands.add_parser("shrink").add_argument("file")
    args = parser.parse_args(argv)
    if args.command == "new":
        new(args.number, args.name, args.stage, args.folder)
    elif args.command == "shrink":
        shrink(args.file)
    else:
        {"export": export, "readme": write_readme, "site": site, "lock": lock}[args.command]()


if __name__ == "__main__":
    main()
