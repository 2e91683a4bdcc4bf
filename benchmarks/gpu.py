"""Training on a GPU, beside the processor of the same machine and PyTorch Geometric's LightGCN on the same GPU.

If torch sees no GPU, the rows stay as they are.
"""

import torch
from gnn_ecommerce.graph.datasets import load_benchmark
from gnn_ecommerce.graph.interactions import random_graph

from benchmarks.common import Clock, in_turn, machine, row, write
from benchmarks.epoch import BATCH, DIM, LAYERS, OURS, ShortRun, bpr_ours, bpr_pyg

WHOLE_SHOP = dict(n_users=1_640_000, n_items=54_600, n_edges=10_200_000)


def epochs(graph, n, **settings):
    "Seconds of n epochs after one to warm up, peak of the GPU's memory in GB, and the precision."
    made = ShortRun(graph, **settings)
    state = made.initial_state()
    torch.cuda.reset_peak_memory_stats()
    made.run_epoch(state)
    seconds = []
    for _ in range(n):
        torch.cuda.synchronize()
        clock = Clock()
        made.run_epoch(state)
        torch.cuda.synchronize()
        seconds.append(clock.wall)
    return seconds, torch.cuda.max_memory_allocated() / 1e9, state.precision


def run(full=False):
    "Time and write the rows."
    if not torch.cuda.is_available():
        print("gpu: expected a GPU that torch sees, found none: nothing is measured")
        return
    on, gpu = machine(), torch.cuda.get_device_name()
    on |= dict(gpu=gpu, threads=torch.get_num_threads())
    graph, rows = load_benchmark("gowalla").graph, []
    for dim in (64, 128):
        seconds, peak, precision = epochs(graph, 10 if full else 5, dim=dim, device="cuda")
        there, _, its_precision = epochs(graph, 3 if full else 2, dim=dim, device="cpu")
        label, peer = (
            f"{OURS}, softmax epoch, d {dim}, {precision}, GPU",
            f"{OURS}, softmax epoch, d {dim}, {its_precision}, processor of the same machine",
        )
        rows += [
            row(peer, "gowalla", "seconds", there, "s"),
            row(label, "gowalla", "seconds", seconds, "s", peer=peer, peer_values=there),
            row(label, "gowalla", "peak_gb", peak, "GB of the GPU"),
        ]
    n, label, where = (
        5,
        f"BPR batch of {BATCH}, d {DIM}, {LAYERS} layers, GPU",
        dict(dataset="gowalla", metric="seconds", unit="s per batch"),
    )
    runs = {
        OURS: bpr_ours(graph, n, "cuda"),
        "PyG LightGCN, CSR adjacency": bpr_pyg(graph, n, True, "cuda"),
        "PyG LightGCN, edge_index": bpr_pyg(graph, n, False, "cuda"),
    }

    def timed(call):
        def done():
            call()
            torch.cuda.synchronize()

        return done

    seconds = {
        name: [s / n for s in values]
        for name, values in in_turn({k: timed(v) for k, v in runs.items()}, 9 if full else 5).items()
    }
    for name, values in seconds.items():
        if name == OURS:
            continue
        rows += [
            row(f"{name}, {label}", values=values, **where),
            row(f"{OURS}, {label}", values=seconds[OURS], peer=f"{name}, {label}", peer_values=values, **where),
        ]
    if full:
        seconds, peak, precision = epochs(
            random_graph(**WHOLE_SHOP, seed=0), 3, dim=64, batch=None, init="normal", temperature=0.2, device="cuda"
        )
        label = f"{OURS}, softmax epoch, d 64, {precision}, GPU"
        rows += [
            row(label, "random graph of the whole shop's size", "seconds", seconds, "s"),
            row(label, "random graph of the whole shop's size", "peak_gb", peak, "GB of the GPU"),
        ]
    write("gpu", rows, on=on)
