"""The house, read from the code: which module imports which, chapters and folders as one graph, and its picture.

python tools/house.py    the chapters and folders, each with what it imports from
"""

import ast
import graphlib
from html import escape
from pathlib import Path

from notebooks import module, numbered

ROOT = Path(__file__).resolve().parents[1]
WIDTH, BOX, ROW = 760, (112, 34), 74


def source(name, root=ROOT):
    "Text of a module, such as that of graph.interactions."
    return (root / "gnn_ecommerce" / f"{name.replace('.', '/')}.py").read_text(encoding="utf8")


def imports(root=ROOT):
    "For each module the modules that it imports, each with the number of names."
    names = {module(file, root) for file in numbered(root)}
    return {name: imported(name, names, root) for name in sorted(names)}


def imported(name, names, root=ROOT):
    "Modules among `names` that one module imports, with the number of names that it takes from each."
    package, counts = ["gnn_ecommerce", *name.split(".")[:-1]], {}
    for node in ast.walk(ast.parse(source(name, root))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        full = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            for candidate in (full, f"{full}.{alias.name}"):
                own = candidate.removeprefix("gnn_ecommerce.")
                if candidate.startswith("gnn_ecommerce.") and own in names and own != name:
                    counts[own] = counts.get(own, 0) + 1
    return counts


def place(name):
    "The folder of a part; a chapter is a place of its own."
    return name.rpartition(".")[0] or name


def rooms(root=ROOT):
    "Chapters and folders, each with the places that it imports from and the number of names."
    arrows = {}
    for name, counts in imports(root).items():
        own = arrows.setdefault(place(name), {})
        for other, n in counts.items():
            if place(other) != place(name):
                own[place(other)] = own.get(place(other), 0) + n
    return arrows


def floors(arrows):
    "The floor of each room: one above the highest room that it stands on. Raises `CycleError` for a circle."
    level = {}
    for name in graphlib.TopologicalSorter(arrows).static_order():
        level[name] = max((level[other] + 1 for other in arrows.get(name, ())), default=0)
    return level


def direct(arrows):
    "Arrows without those that a longer way implies."
    below = {}
    for name in graphlib.TopologicalSorter(arrows).static_order():
        below[name] = set(arrows[name]).union(*(below[other] for other in arrows[name]))
    return {
        name: {o: n for o, n in others.items() if not any(o in below[other] for other in others if other != o)}
        for name, others in arrows.items()
    }


def svg(root=ROOT):
    "The picture: what stands on what, foundations below. A chapter is filled, a folder is outlined."
    arrows = rooms(root)
    level, parts = floors(arrows), [place(m) for m in imports(root) if "." in m]
    rows = [[name for name in arrows if level[name] == n] for n in range(max(level.values()) + 1)]
    height = ROW * len(rows)
    at = {
        name: (WIDTH * (k + 1) / (len(row) + 1), height - ROW * n - ROW / 2)
        for n, row in enumerate(rows)
        for k, name in enumerate(row)
    }
    out = [f'<svg class="house" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="chapters and folders">']
    for name, others in direct(arrows).items():
        for other, n in others.items():
            (x1, y1), (x2, y2) = at[name], at[other]
            y1, y2 = y1 + BOX[1] / 2, y2 - BOX[1] / 2
            out.append(
                f'<path stroke-width="{1 + min(n, 30) / 8:.1f}" d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + 30:.0f} '
                f'{x2:.0f} {y2 - 30:.0f} {x2:.0f} {y2:.0f}"><title>{name} takes {n} names from {other}</title></path>'
            )
    for name, (x, y) in at.items():
        folder = name in parts
        label = f"{name}/ ({parts.count(name)})" if folder else name
        out.append(
            f'<rect class="{"folder" if folder else "chapter"}" x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" '
            f'width="{BOX[0]}" height="{BOX[1]}" rx="6"/><text x="{x:.0f}" y="{y + 4:.0f}">{escape(label)}</text>'
        )
    return "\n".join([*out, "</svg>"])


def html():
    "The picture, to be put into a page."
    caption = "Filled: a chapter. Outlined: a folder, with its number of parts. A line leads to what a room stands on."
    return f'<figure class="house">\n{svg()}\n<figcaption>{caption}</figcaption>\n</figure>\n'


if __name__ == "__main__":
    graph = rooms()
    level = floors(graph)
    for name in sorted(graph, key=lambda n: (level[n], n)):
        print(f"{level[name]:2} {name:16} <- {', '.join(f'{o} {n}' for o, n in sorted(graph[name].items()))}")
