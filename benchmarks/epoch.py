"""Training on Gowalla: epochs of the exact softmax, and seconds per batch of BPR.

The peers are the LightGCN of PyTorch Geometric and the one of RecBole.
"""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from gnn_ecommerce.graph.datasets import data_folder, load_benchmark
from gnn_ecommerce.models.losses import make_loss
from gnn_ecommerce.training import Run, TrainingSettings, resolve
from torch_geometric.nn import LightGCN

from benchmarks.common import Clock, in_turn, machine, row, write

OURS, BATCH, LAYERS, DIM = "gnn_ecommerce", 2048, 2, 64


class ShortRun(Run):
    "A run whose epochs end after some batches."

    def __init__(self, graph, most=None, **settings):
        super().__init__(graph, resolve(TrainingSettings(layers=LAYERS, **settings), graph))
        self.most = most

    def batches(self, epoch):
        return itertools.islice(super().batches(epoch), self.most)


def softmax_memory(dim):
    "Peak memory of a process that does two steps of the softmax, in GB; the data and all libraries included."
    run = ShortRun(load_benchmark("gowalla").graph, 2, dim=dim, device="cpu")
    run.run_epoch(run.initial_state())
    # not ru_maxrss: on Linux a process starts with the peak of the one that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def bpr_ours(graph, n, device="cpu"):
    "A callable that does n steps of BPR."
    run = ShortRun(graph, n, device=device, loss="bpr", dim=DIM, init="normal", batch=BATCH, l2=1e-4)
    state = run.initial_state()
    return lambda: run.run_epoch(state)


def bpr_pyg(graph, n, sparse, device="cpu"):
    "The same with PyG's LightGCN, as in its example; `sparse`: a normalised CSR adjacency in place of edge_index."
    data, loss = graph.to_pyg(), make_loss("bpr", graph, batch=BATCH)
    model = LightGCN(graph.n_users + graph.n_items, DIM, LAYERS, **(dict(normalize=False) if sparse else {})).to(device)
    optimizer, edges = torch.optim.Adam(model.parameters(), lr=0.001), data.edge_index.to(device)
    if sparse:
        from gnn_ecommerce.graph.propagation import Adjacency

        a = Adjacency.from_graph(graph, weighted=False).to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            edges = torch.sparse_csr_tensor(a.indptr.int(), a.indices, a.values, (a.num_nodes,) * 2)

    def run():
        for user, good, bad in itertools.islice(loss.batches(np.random.default_rng(0)), n):
            user, good, bad = user.to(device), good.to(device) + graph.n_users, bad.to(device) + graph.n_users
            pairs = torch.stack([torch.cat([user, user]), torch.cat([good, bad])])
            optimizer.zero_grad()
            score = model(edges, pairs)
            model.recommendation_loss(*score.chunk(2), node_id=pairs.unique(), lambda_reg=1e-4).backward()
            optimizer.step()

    return run


def recbole(n):
    "Seconds per batch of RecBole's LightGCN. GNN_ECOMMERCE_RECBOLE names its interpreter; None without."
    python = os.environ.get("GNN_ECOMMERCE_RECBOLE")
    if not python:
        return None
    done = subprocess.run(
        [
            python,
            str(Path(__file__).parent / "recbole_epoch.py"),
            str(data_folder("gowalla") / "train.txt"),
            str(BATCH),
            str(DIM),
            str(LAYERS),
            str(n),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        print(f"RecBole: expected seconds, found an error: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(full=False):
    "Time and write the rows."
    graph, on, rows, more = load_benchmark("gowalla").graph, machine(), [], {}
    for dim in (64, 128):
        made = ShortRun(graph, dim=dim, device="cpu")
        state = made.initial_state()
        made.run_epoch(state)
        seconds, cpu, name = [], [], f"{OURS}, softmax epoch, d {dim}, {state.precision}"
        for _ in range(5 if full else 2):
            clock = Clock()
            made.run_epoch(state)
            seconds.append(clock.wall)
            cpu.append(clock.cpu)
        rows += [row(name, "gowalla", "seconds", seconds, "s"), row(name, "gowalla", "cpu_seconds", cpu, "s")]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(
                row(f"{OURS}, softmax, d {dim}", "gowalla", "peak_gb", pool.apply(softmax_memory, (dim,)), "GB")
            )
    n, where = 2 if full else 1, dict(dataset="gowalla", metric="seconds", unit="s per batch")
    runs = {
        OURS: bpr_ours(graph, n),
        "PyG LightGCN, CSR adjacency": bpr_pyg(graph, n, True),
        "PyG LightGCN, edge_index": bpr_pyg(graph, n, False),
    }
    seconds = {name: [s / n for s in values] for name, values in in_turn(runs, 5 if full else 3).items()}
    theirs = recbole(10 if full else 5)
    if theirs:
        seconds["RecBole LightGCN"], more = theirs["seconds"], theirs["versions"]
        again = in_turn({OURS: runs[OURS]}, len(seconds[OURS]))[OURS]
        seconds[OURS] += [s / n for s in again]
    label = f"BPR batch of {BATCH}, d {DIM}, {LAYERS} layers"
    for name, values in seconds.items():
        if name != OURS:
            rows.append(row(f"{name}, {label}", values=values, **where))
            rows.append(
                row(f"{OURS}, {label}", values=seconds[OURS], peer=f"{name}, {label}", peer_values=values, **where)
            )
    write("epoch", rows, extra_versions=more, on=on)
