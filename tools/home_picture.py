"""The picture of the site's home page: one recommendation taken apart, computed and drawn when the site is built."""

from html import escape

import numpy as np
import pandas as pd

import gnn_ecommerce.explainability  # noqa: F401 (sentences)
from gnn_ecommerce.core import IdMap
from gnn_ecommerce.graph.interactions import InteractionGraph
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.explain.paths import picture
from gnn_ecommerce.explain.shares import Explainer

PRODUCTS = {"brush": "Hair brush", "cream": "Hand cream", "polish": "Nail polish", "lamp": "UV lamp", "comb": "Comb"}
EVENTS = [
    ("Ana", "polish", "purchase"),
    ("Ana", "cream", "purchase"),
    ("Ana", "brush", "cart"),
    ("Ben", "polish", "purchase"),
    ("Ben", "lamp", "purchase"),
    ("Cleo", "polish", "view"),
    ("Cleo", "cream", "purchase"),
    ("Cleo", "lamp", "purchase"),
    ("Dan", "brush", "purchase"),
    ("Dan", "lamp", "purchase"),
    ("Eva", "comb", "purchase"),
    ("Eva", "brush", "purchase"),
]
WEIGHT = {"view": 0.01, "cart": 0.1, "purchase": 1.0}
COLUMNS = (("customer", 70), ("their history", 260), ("who has it too", 450), ("recommended", 640))


def shop():
    "Five customers and five products."
    df = pd.DataFrame(EVENTS, columns=["user", "item", "event"])
    users, items = IdMap(df.user.unique()), IdMap(df.item.unique())
    counts = pd.DataFrame(
        {f"n_{k}": (df.event == k).astype("int32") for k in ("view", "cart", "remove_from_cart", "purchase")}
    )
    return InteractionGraph.from_arrays(
        users.encode(df.user.tolist()),
        items.encode(df.item.tolist()),
        df.event.map(WEIGHT).to_numpy(),
        (df.event == "purchase").to_numpy(),
        user_ids=users,
        item_ids=items,
        items=pd.DataFrame({"product_id": items.ids, "name": [PRODUCTS[i] for i in items.ids]}),
        edges=counts,
        scheme="sum",
    )


def explained():
    "Ana's lamp: score, paths with their parts of it, and the sentence."
    graph = shop()
    explainer = Explainer(
        graph,
        np.zeros((graph.n_users + graph.n_items, 1)),
        [0.5, 0.5],
        filter=GraphFilter(diagonal=True).fit(graph),
        b=1.0,
    )
    ana, lamp = int(graph.user_ids.encode(["Ana"])[0]), int(graph.item_ids.encode(["lamp"])[0])
    table = explainer.walks(ana, lamp).table
    table = table[(table.kind == "filter path") & (table.share > 0)]
    shares = explainer.shares(ana, [lamp])
    assert abs(table.share.sum() - shares.score[0]) < 1e-6, "the paths add up to the score"
    return graph, table, float(shares.score[0]), explainer.sentence(shares, lamp)


def svg():
    "The picture, in the colours of the page that holds it."
    graph, table, score, sentence = explained()
    nodes, lines = picture(graph, list(table.path), table.share / score)
    at = [(COLUMNS[r.column][1], 48 + 175 * r.y) for r in nodes.itertuples()]
    out = [f'<svg class="why" viewBox="0 0 710 235" role="img" aria-label="{escape(sentence)}">']
    for r in lines.itertuples():
        (x1, y1), (x2, y2) = at[r.start], at[r.end]
        middle, title = (x1 + x2) / 2, escape(f"{r.event}, {r.share:.0%} of the score")
        curve = f"M{x1} {y1:.0f}C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2} {y2:.0f}"
        width = f"{1.5 + 12 * r.share:.1f}"
        out.append(f'<path class="{r.event}" stroke-width="{width}" d="{curve}"><title>{title}</title></path>')
    for r, (x, y) in zip(nodes.itertuples(), at):
        label = PRODUCTS[r.id] if r.kind == "item" else r.id
        part = f" {r.share:.0%}" if r.column in (1, 2) else ""
        out.append(
            f'<circle cx="{x}" cy="{y:.0f}" r="7"/>'
            if r.kind == "user"
            else f'<rect x="{x - 7}" y="{y - 7:.0f}" width="14" height="14" rx="3"/>'
        )
        out.append(f'<text x="{x}" y="{y - 13:.0f}"><tspan class="name">{escape(label)}</tspan>{part}</text>')
    out += [f'<text class="head" x="{x}" y="14">{name}</text>' for name, x in COLUMNS]
    for k, event in enumerate(e for e in WEIGHT if e in set(lines.event)):
        x = 250 + 90 * k
        out.append(f'<path class="{event}" stroke-width="4" d="M{x} 228h18"/>')
        out.append(f'<text class="key" x="{x + 24}" y="232">{event}</text>')
    return "\n".join([*out, "</svg>"]), sentence


def html():
    "Picture and sentence, to be put into a page."
    drawing, sentence = svg()
    return f'<figure class="why">\n{drawing}\n<figcaption>“{escape(sentence)}”</figcaption>\n</figure>\n'


if __name__ == "__main__":
    print(html())
