"""What the interaction graph refuses, and what survives its files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gnn_ecommerce.core import DataError
from gnn_ecommerce.graph.interactions import InteractionGraph, random_graph, toy_graph

make = InteractionGraph.from_arrays


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(user=[0, 0], item=[1, 1]), r"edges: expected distinct pairs .*found \(0, 1\) twice"),
        (dict(user=[0], item=[1], weight=[np.nan]), "weight: expected finite numbers above 0"),
        (dict(user=[0], item=[1], weight=[np.inf]), "weight: expected finite numbers above 0"),
        (dict(user=[0], item=[1], weight=[0.0]), "weight: expected finite numbers above 0, found 1 others, such as 0"),
        (dict(user=[0], item=[7], n_items=3), "item: expected indices in 0..2, found 7..7"),
        (dict(user=[-1], item=[0]), "user: expected indices in 0..2147483647, found -1..-1"),
        (dict(user=[2**40], item=[1]), "user: expected indices in 0..2147483647, found 1099511627776"),
        (dict(user=[0.5], item=[1]), r"user: expected whole numbers, one a pair, found float64 \(1,\)"),
        (dict(user=[[0]], item=[1]), r"user: expected whole numbers, one a pair, found int64 \(1, 1\)"),
        (dict(user=[0], item=[1, 2]), "item: expected 1 entries, one a pair, found 2"),
        (dict(user=[0], item=[1], purchased=[True, False]), "purchased: expected 1 entries, one a pair, found 2"),
        (dict(user=[0], item=[0], user_ids=["b", "a"]), "user_ids: expected ids in sorted order"),
        (dict(user=[0], item=[0], user_ids=["a"], n_users=2), "user_ids: expected 2 ids, found 1"),
    ],
)
def test_what_a_graph_refuses(arguments, message):
    with pytest.raises(DataError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: dict(weight=g.weight.astype(float)),
            r"weight: expected a float32 array of shape \(9,\), found float64",
        ),
        (lambda g: dict(user=g.user.astype(np.int64)), r"user: expected a int32 array of shape \(9,\), found int64"),
        (lambda g: dict(item=g.item[:-1]), r"item: expected a int32 array of shape \(9,\), found int32 \(8,\)"),
        (lambda g: dict(user=g.user[::-1].copy()), "before a smaller pair"),
        (lambda g: dict(items=g.items.head(2)), "items: expected 5 rows, found 2"),
        (lambda g: dict(edges=g.edges.head(2)), "edges: expected 9 rows, found 2"),
    ],
    ids=["weight", "user", "item", "order", "items", "edges"],
)
def test_arrays_of_a_graph_are_checked(change, message):
    toy = toy_graph()
    with pytest.raises(DataError, match=message):
        replace(toy, **change(toy))


def test_a_graph_may_have_no_edges():
    assert make([], [], n_users=2, n_items=3).csr().shape == (2, 3)


@pytest.mark.parametrize(("values", "dtype"), [("seen", bool), ("bought", bool), ("weight", np.float32)])
def test_types_of_the_matrices(values, dtype):
    assert toy_graph().csr(values).dtype == dtype


def test_unknown_ids_are_returned_as_they_came():
    toy = toy_graph()
    ids = {"user_id": ["ana", "eve", "ana", "ana"], "product_id": ["lamp", "lamp", "lamp", "soap"], "n": [1, 2, 3, 4]}
    placed, rest = toy.encode_pairs(pd.DataFrame(ids))
    assert placed.nnz == 1
    assert rest.n.tolist() == [2, 4]


@pytest.mark.parametrize("graph", [toy_graph(), random_graph(30, 20, 200), make([], [], n_users=2, n_items=1)])
def test_files_keep_the_tables(graph, tmp_path):
    graph.save(tmp_path / "graph")
    back = InteractionGraph.load(tmp_path / "graph")
    for ours, theirs in ((back.items, graph.items), (back.edges, graph.edges)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
