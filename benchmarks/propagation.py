"""One layer of propagation on Gowalla, A x for x (70,839 x d), beside PyTorch Geometric, PyTorch and SciPy."""

import warnings

import numpy as np
import torch
from gnn_ecommerce.graph.datasets import load_benchmark
from gnn_ecommerce.graph.propagation import Adjacency
from torch_geometric.nn import LGConv

from benchmarks.common import in_turn, machine, row, write

OURS = "gnn_ecommerce"


def contenders(graph, dim):
    "Callables that compute the same product, checked against each other."
    adjacency, data, conv, plain = (
        Adjacency.from_graph(graph, weighted=False),
        graph.to_pyg(),
        LGConv(),
        LGConv(normalize=False),
    )
    n = adjacency.num_nodes
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((n, dim), np.float32))
    scipy_matrix, out = adjacency.to_scipy(), torch.empty_like(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        csr = torch.sparse_csr_tensor(adjacency.indptr.int(), adjacency.indices, adjacency.values, (n, n))
    runs = {
        OURS: lambda: adjacency.matmul(x, out=out),
        "PyG LGConv, edge_index": lambda: conv(x, data.edge_index),
        "PyG LGConv, CSR adjacency": lambda: plain(x, csr),
        "PyTorch CSR": lambda: csr @ x,
        "SciPy CSR": lambda: scipy_matrix @ x.numpy(),
    }
    first = runs[OURS]().clone()
    with torch.no_grad():
        for name, run in runs.items():
            far = float((torch.as_tensor(run()) - first).abs().max())
            if far > 1e-4:
                raise AssertionError(f"{name}: expected the product that {OURS} gives, found a difference of {far}")
    return runs


def run(full=False):
    "Time all contenders in turn and write the rows."
    graph, on, rows = load_benchmark("gowalla").graph, machine(), []
    for dim in (64, 128):
        with torch.no_grad():
            seconds = in_turn(contenders(graph, dim), 15 if full else 5)
        where = dict(dataset="gowalla", metric="seconds", unit="s")
        for name, values in seconds.items():
            if name != OURS:
                rows.append(row(f"{name}, d {dim}", values=values, **where))
        for peer, values in seconds.items():
            if peer != OURS:
                rows.append(
                    row(f"{OURS}, d {dim}", values=seconds[OURS], peer=f"{peer}, d {dim}", peer_values=values, **where)
                )
    write("propagation", rows, on=on)
