"""Our LightGCN against PyG's own, on random graphs and on awkward ones; and the package without numba, and on a GPU."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch_geometric.nn import LightGCN as PyG

from gnn_ecommerce.graph.interactions import InteractionGraph, random_graph
from gnn_ecommerce.models.pyg import LightGCN
from gnn_ecommerce.graph.propagation import Adjacency
from gnn_ecommerce.graph.kernels import HAS_NUMBA

TOLERANCE = 1e-5


def edges_of(graph, weighted):
    "A graph as PyG takes it: edge_index, edge_weight or None, number of nodes."
    data = graph.to_pyg()
    return data.edge_index, data.edge_weight if weighted else None, graph.n_users + graph.n_items


def random_edges(nodes, edges, seed):
    "A directed multigraph: self-loops, repeated edges and nodes without edges included."
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, nodes, (2, edges), generator=draw), torch.rand(edges, generator=draw) + 0.1, nodes


GRAPHS = {
    "random": lambda: edges_of(random_graph(80, 60, 900, seed=0), True),
    "random, unweighted": lambda: edges_of(random_graph(80, 60, 900, seed=1), False),
    "sparse, isolated nodes": lambda: edges_of(random_graph(80, 200, 60, seed=2), True),
    "isolated nodes, unweighted": lambda: edges_of(
        InteractionGraph.from_arrays([0, 0, 5], [1, 9, 1], n_users=9, n_items=12), False
    ),
    "single edge": lambda: edges_of(InteractionGraph.from_arrays([0], [0], [0.3]), True),
    "single edge, isolated nodes": lambda: edges_of(
        InteractionGraph.from_arrays([3], [2], [0.3], n_users=7, n_items=5), True
    ),
    "directed": lambda: random_edges(50, 300, 3),
    "directed, unweighted": lambda: (random_edges(50, 300, 4)[0], None, 50),
    "star": lambda: edges_of(InteractionGraph.from_arrays([0] * 300, np.arange(300), np.linspace(0.01, 1, 300)), True),
    "no edges": lambda: (torch.zeros((2, 0), dtype=torch.long), None, 6),
}


def pair(nodes, dim, layers, **kw):
    "PyG's model and ours, with the same parameters."
    torch.manual_seed(0)
    theirs, ours = PyG(nodes, dim, layers, **kw), LightGCN(nodes, dim, layers, **kw)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def close(a, b):
    torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("layers", [0, 1, 2, 4])
@pytest.mark.parametrize("graph", GRAPHS)
def test_equals_pyg(graph, layers):
    "Embeddings, scores, BPR loss with L2, gradient and recommendations."
    edge_index, edge_weight, nodes = GRAPHS[graph]()
    theirs, ours = pair(nodes, 20, layers)
    close(ours.get_embedding(edge_index, edge_weight), theirs.get_embedding(edge_index, edge_weight))
    close(ours(edge_index, None, edge_weight), theirs(edge_index, None, edge_weight))
    draw = torch.Generator().manual_seed(1)
    pos, neg = torch.randint(0, nodes, (2, 64), generator=draw), torch.randint(0, nodes, (2, 64), generator=draw)
    losses = []
    for model in (theirs, ours):
        rank = model(edge_index, torch.cat([pos, neg], 1), edge_weight)
        loss = model.recommendation_loss(rank[:64], rank[64:], torch.cat([pos, neg], 1).unique(), lambda_reg=1e-2)
        loss.backward()
        losses.append(loss.detach())
    close(losses[1], losses[0])
    close(ours.embedding.weight.grad, theirs.embedding.weight.grad)
    assert ours.embedding.weight.grad.abs().max() > 0
    close(
        ours.predict_link(edge_index, pos, edge_weight, prob=True),
        theirs.predict_link(edge_index, pos, edge_weight, prob=True),
    )


@pytest.mark.parametrize("dim", [1, 7, 16, 64, 100, 130])
def test_any_width(dim):
    edge_index, edge_weight, nodes = GRAPHS["random"]()
    theirs, ours = pair(nodes, dim, 3)
    close(ours.get_embedding(edge_index, edge_weight), theirs.get_embedding(edge_index, edge_weight))


@pytest.mark.parametrize("alpha", [0.5, torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.0, 0.0, 1.0])])
def test_layer_weights(alpha):
    edge_index, edge_weight, nodes = GRAPHS["random"]()
    theirs, ours = pair(nodes, 8, 2, alpha=alpha)
    close(ours.get_embedding(edge_index, edge_weight), theirs.get_embedding(edge_index, edge_weight))


def test_without_normalisation():
    edge_index, edge_weight, nodes = GRAPHS["directed"]()
    theirs, ours = pair(nodes, 8, 2, normalize=False)
    close(ours.get_embedding(edge_index, edge_weight), theirs.get_embedding(edge_index, edge_weight))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Converting sparse tensor")
def test_sparse_matrix_in_the_place_of_edge_index(layout):
    edge_index, edge_weight, nodes = GRAPHS["directed"]()
    adj_t = torch.sparse_coo_tensor(edge_index.flip(0), edge_weight, (nodes, nodes)).coalesce()
    adj_t = adj_t if layout == torch.sparse_coo else adj_t.to_sparse_csr()
    theirs, ours = pair(nodes, 8, 2)
    close(ours.get_embedding(adj_t), theirs.get_embedding(adj_t))


def test_a_training_run():
    "Twenty steps of Adam: the parameters stay together."
    g = random_graph(80, 60, 900, seed=5)
    edge_index, edge_weight, nodes = edges_of(g, True)
    models = pair(nodes, 16, 2)
    for model in models:
        draw = torch.Generator().manual_seed(2)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(20):
            at = torch.randint(0, g.n_edges, (128,), generator=draw)
            negative = torch.randint(g.n_users, nodes, (128,), generator=draw)
            labels = torch.cat([edge_index[:, at], torch.stack([edge_index[0, at], negative])], 1)
            rank = model(edge_index, labels, edge_weight)
            loss = model.recommendation_loss(rank[:128], rank[128:], labels.unique())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(models[1].embedding.weight, models[0].embedding.weight, atol=1e-4, rtol=1e-4)


def test_gradient_of_edge_weights_and_alpha():
    "What the engine does not do, PyG's own code does."
    edge_index, edge_weight, nodes = GRAPHS["random"]()
    gradients = []
    for model in pair(nodes, 8, 2):
        weight = edge_weight.clone().requires_grad_()
        model.get_embedding(edge_index, weight).square().sum().backward()
        gradients.append(weight.grad)
    close(gradients[1], gradients[0])


def test_state_dicts_are_interchangeable():
    theirs, ours = pair(10, 4, 2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_recommend():
    edge_index, edge_weight, nodes = GRAPHS["random"]()
    theirs, ours = pair(nodes, 16, 2)
    kw = dict(src_index=torch.arange(80), dst_index=torch.arange(80, 140), k=7)
    assert torch.equal(ours.recommend(edge_index, edge_weight, **kw), theirs.recommend(edge_index, edge_weight, **kw))


def test_repeatable_bit_for_bit():
    A = Adjacency.from_graph(random_graph(2000, 1500, 30_000, seed=6))
    x = torch.randn(A.num_nodes, 48, generator=torch.Generator().manual_seed(0))
    assert A.matmul(x).equal(A.matmul(x))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = A.matmul(x)
    finally:
        torch.set_num_threads(threads)
    if HAS_NUMBA:
        assert A.matmul(x).equal(one)


WITHOUT_NUMBA = """
    import sys
    sys.modules['numba'] = None          # as if it were not installed
    import numpy as np, torch
    from gnn_ecommerce.graph.interactions import random_graph
    from gnn_ecommerce.lightgcn import init_embedding
    from gnn_ecommerce.models.losses import LOSSES
    from gnn_ecommerce.graph.propagation import Adjacency, Propagation
    from gnn_ecommerce.graph.kernels import HAS_NUMBA
    assert not HAS_NUMBA
    g = random_graph(60, 50, 600, seed=0)
    A = Adjacency.from_graph(g)
    P = Propagation(A, [1/3]*3)
    for name in LOSSES:
        e = init_embedding(g, 12)
        loss = LOSSES[name](g, batch=64, l2=1e-3)
        opt, values = torch.optim.Adam([e], .02), []
        for epoch in range(3):
            for batch in loss.batches(np.random.default_rng(epoch)):
                grad_z, grad_e = torch.zeros_like(e), torch.zeros_like(e)
                values.append(loss.step(P.forward(e), e, batch, grad_z, grad_e))
                e.grad = P.backward(grad_z)+grad_e
                opt.step()
        print(name, ' '.join(f'{v:.6f}' for v in values), f'{e.norm():.6f}')
    assert not [m for m in sys.modules if m.split('.')[0] in ('numba', 'llvmlite') and sys.modules[m]]
"""


@pytest.mark.slow
def test_without_numba():
    "The plain paths train to the same numbers."
    with_numba = WITHOUT_NUMBA.replace("sys.modules['numba'] = None", "pass").replace("assert not", "pass #")
    out = [
        subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True)
        for code in (WITHOUT_NUMBA, with_numba)
    ]
    for o in out:
        assert o.returncode == 0, o.stderr
    plain, compiled = (o.stdout.split() for o in out)
    assert len(plain) == len(compiled) and len(plain) > 40
    for a, b in zip(plain, compiled):
        if a[0].isalpha():
            assert a == b
        else:
            assert abs(float(a) - float(b)) < 2e-3 * max(1, abs(float(b))), (a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("graph", ["random", "sparse, isolated nodes", "directed"])
def test_on_a_gpu(graph):
    "The same numbers on a GPU, forward and gradient."
    edge_index, edge_weight, nodes = GRAPHS[graph]()
    theirs, ours = pair(nodes, 20, 3)
    theirs.get_embedding(edge_index, edge_weight).square().sum().backward()
    ours = ours.cuda()
    z = ours.get_embedding(edge_index.cuda(), edge_weight.cuda())
    z.square().sum().backward()
    close(z.cpu(), theirs.get_embedding(edge_index, edge_weight))
    close(ours.embedding.weight.grad.cpu(), theirs.embedding.weight.grad)


WHO_LOADS_PYG = """
    import importlib, pkgutil, sys, gnn_ecommerce
    for module in pkgutil.walk_packages(gnn_ecommerce.__path__, 'gnn_ecommerce.'):
        if module.name == 'gnn_ecommerce.models.pyg': continue
        importlib.import_module(module.name)
        loaded = [name for name in ('torch_geometric', 'torch._dynamo') if name in sys.modules]
        if loaded: sys.exit(f'{module.name} loads {loaded}')
"""


def test_only_the_pyg_model_loads_pyg():
    "It takes 2.5 s and 90 MB, which no stage and no server needs."
    code = textwrap.dedent(WHO_LOADS_PYG)
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
