"""Ranking metrics on public data and on the built-in shop.

Validation chooses; what was chosen reads each test part once.
"""

import numpy as np
from gnn_ecommerce.models.baselines import ALSRecommender, SVDRecommender
from gnn_ecommerce.core import example_project, run_stage
from gnn_ecommerce.graph.datasets import load_benchmark
from gnn_ecommerce.ranking.evaluation import evaluate
from gnn_ecommerce.graph.interactions import pairs_csr
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.ranking.recommender import Popular
from gnn_ecommerce.training import TrainingSettings, fit

from benchmarks.common import RESULTS, Clock, machine, named_parts, read, row, save, write
from benchmarks.protocol import RETAILROCKET_CHOSEN, Retailrocket, fit_final, lightgcn_of

TAIL, DEFAULTS = "validation: last 10 % of each user's line", "nothing: defaults"
GOWALLA = dict(temperature=0.1, batch=1024)
FAST = GOWALLA | dict(
    epochs=4,
    schedule="constant",
    eval_every=4,
    eval_users=5_000,
    filter="paths",
    filter_search=False,
    b=[0.0, 5.0, 10.0, 20.0, 30.0],
    exclude="seen",
)
MIDDLE = FAST | dict(filter="chebyshev", b=[0.0, 10.0, 15.0, 20.0, 30.0, 50.0])
ORDER = ", with order"  # of each user's line in train.txt, which the published methods do not use
FAST_ORDER = FAST | dict(filter_search=True, b=[0.0, 10.0, 20.0, 30.0, 50.0, 100.0], eval_users=30_000)
LARGE = dict(dim=128, epochs=60, eval_every=5, patience=10)
TUNED = dict(
    temperature=0.15, alpha=[0.15, 0.25, 0.6]
)  # on valid.txt of lastfm: temperatures .1 .15 .17 .2, 1 to 3 layers, d 128 192 256, seven sets of layer weights
FINAL = GOWALLA | dict(
    dim=128,
    epochs=18,
    eval_every=6,
    filter="chebyshev",
    filter_search=False,
    b=[0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0],
    exclude="seen",
)


def scores(name, dataset, evaluations, chosen_on, metrics=("recall@20", "ndcg@20"), split="test"):
    "Rows of one method: the median over seeds of each metric."
    return [row(name, dataset, m, [e.metrics[m] for e in evaluations], "", split, chosen_on=chosen_on) for m in metrics]


def costs(name, dataset, wall, cpu):
    "Rows of the time from the graph to the scores."
    return [row(name, dataset, "seconds", wall, "s"), row(name, dataset, "cpu_seconds", cpu, "s")]


def curve(name, dataset, final, metric):
    "Keep validation against wall time of a run that chose, in curves.json."
    kept = [c for c in (read("curves") or dict(curves=[]))["curves"] if (c["name"], c["dataset"]) != (name, dataset)]
    seen = final.history.dropna(subset=["value"]) if "value" in final.history else final.history[:0]
    new = dict(
        name=name,
        dataset=dataset,
        metric=metric,
        split="validation",
        seconds=seen.seconds.round(2).tolist(),
        value=seen.value.round(5).tolist(),
        loss_seconds=final.history.seconds.round(2).tolist(),
        loss=final.history.loss.round(4).tolist(),
    )
    save(dict(suite="curves", curves=[*kept, new]), RESULTS / "curves.json")


def timed(make, test, exclude="seen"):
    "Fit a recommender and score all test users: evaluation, and wall and processor seconds from graph to lists."
    clock = Clock()
    model = make()
    found = evaluate(model, test, (20,), exclude)
    return found, clock.wall, clock.cpu


def gowalla_filters():
    "What needs no training."
    b, rows = load_benchmark("gowalla"), []
    timed(
        lambda: GraphFilter("paths", n=50).fit(b.graph.subset(b.graph.user < 500)),
        pairs_csr(*np.nonzero(b.test[:500].toarray()), b.test.shape),
    )
    made = {
        "most popular": lambda: Popular().fit(b.graph),
        "graph filter, paths, N 200": lambda: GraphFilter("paths").fit(b.graph),
    }
    for name, make in made.items():
        runs = [timed(make, b.test) for _ in range(3 if "paths" in name else 1)]
        rows += scores(name, "gowalla", [r[0] for r in runs], DEFAULTS) + costs(
            name, "gowalla", [r[1] for r in runs], [r[2] for r in runs]
        )
    return rows


def gowalla_baselines():
    "Factorisations with 64 dimensions."
    b, rows = load_benchmark("gowalla"), []
    for name, make in {
        "truncated SVD, d 64": lambda: SVDRecommender(64, "normalized").fit(b.graph),
        "ALS, d 64": lambda: ALSRecommender(64).fit(b.graph),
    }.items():
        found, wall, cpu = timed(make, b.test)
        rows += scores(name, "gowalla", [found], DEFAULTS) + costs(name, "gowalla", wall, cpu)
    return rows


def gowalla_trained(name, settings, seeds):
    "LightGCN with a graph filter, b chosen on validation, trained again on all of train.txt; and its two parts alone."
    b, found, alone, part, wall, cpu, choosing = load_benchmark("gowalla"), [], [], [], [], [], []
    for seed in seeds:
        final, after = fit_final(b.graph, TrainingSettings(seed=seed, **settings)), Clock()
        found.append(evaluate(final.recommender, b.test, (20,), "seen"))
        wall.append(final.seconds["retrain"] + after.wall)
        cpu.append(final.seconds["retrain_cpu"] + after.cpu)
        choosing.append(final.seconds["choose"])
        if seed == seeds[0]:
            curve(name, "gowalla", final, "ndcg@20")
            print(
                f"{name}: epoch {final.best_epoch}, b {final.b:g}, {final.filter}, validation {final.validation:.4f}",
                flush=True,
            )
        if final.b:
            alone.append(evaluate(lightgcn_of(final.recommender), b.test, (20,), "seen"))
            if seed == seeds[0] and settings["filter"] == "chebyshev":
                part.append(evaluate(final.recommender.filter_part, b.test, (20,), "seen"))
    rows = (
        scores(name, "gowalla", found, TAIL)
        + costs(name, "gowalla", wall, cpu)
        + [row(f"{name}: choosing", "gowalla", "seconds", choosing, "s")]
    )
    if alone:
        rows += scores(f"{name}: LightGCN alone", "gowalla", alone, TAIL)
    if part:
        rows += scores("graph filter, chebyshev, N 200", "gowalla", part, DEFAULTS)
    return rows


def gowalla_fast():
    "Past the best published LightGCN within a minute."
    return gowalla_trained("LightGCN d 64, 4 epochs + paths", FAST, (0, 1, 2))


def gowalla_fast_order():
    "The same, with the order of each user's products in the graph filter."
    return gowalla_trained("LightGCN d 64, 4 epochs + paths" + ORDER, FAST_ORDER, (0, 1, 2))


def gowalla_final_order():
    "The strongest model with order."
    return gowalla_trained(
        "LightGCN d 128, 18 epochs + paths" + ORDER,
        FINAL | dict(filter="paths", filter_search=True, b=FAST_ORDER["b"], eval_users=30_000),
        (0,),
    )


def gowalla_chebyshev():
    "The small model with the stronger filter."
    return gowalla_trained("LightGCN d 64, 4 epochs + chebyshev N 200", MIDDLE, (0,))


def gowalla_final():
    "The strongest model."
    return gowalla_trained("LightGCN d 128, 18 epochs + chebyshev N 200", FINAL, (0,))


def lastfm_trained(name, extra, seeds):
    "LightGCN with a graph filter, trained and masked on train.txt alone; valid.txt chooses."
    b, found, alone, wall, cpu = load_benchmark("lastfm"), [], [], [], []
    for seed in seeds:
        clock = Clock()
        result = fit(b.graph, TrainingSettings(exclude="seen", seed=seed, **extra), b.valid)
        wall.append(clock.wall)
        cpu.append(clock.cpu)
        print(
            f"{name}: epoch {result.best_epoch}, temperature {result.temperature}, "
            f"layers {result.tensors['alpha'].tolist()}, {result.scoring}, validation {result.best_value:.4f}",
            flush=True,
        )
        found.append(evaluate(result.recommender, b.test, (20,), "seen"))
        if result.scoring["b"]:
            alone.append(evaluate(lightgcn_of(result.recommender), b.test, (20,), "seen"))
    rows = scores(name, "lastfm", found, "validation: valid.txt") + costs(f"{name}, with choosing", "lastfm", wall, cpu)
    return rows + (scores(f"{name}: LightGCN alone", "lastfm", alone, "validation: valid.txt") if alone else [])


def lastfm():
    "The defaults, over three seeds, beside the baselines."
    b, rows = load_benchmark("lastfm"), lastfm_trained("LightGCN + graph filter, defaults", {}, (0, 1, 2))
    for name, make in {
        "most popular": Popular,
        "graph filter, paths": GraphFilter,
        "graph filter, regression": lambda: GraphFilter("regression"),
        "truncated SVD, d 64": lambda: SVDRecommender(64, "normalized"),
        "ALS, d 64": ALSRecommender,
    }.items():
        rows += scores(name, "lastfm", [evaluate(make().fit(b.graph), b.test, (20,), "seen")], DEFAULTS)
    return rows


def lastfm_large():
    "More dimensions, and what was tuned on valid.txt."
    return [
        r
        for name, extra in {
            "LightGCN d 128, 60 epochs + graph filter": LARGE,
            "LightGCN d 128, 60 epochs, temperature and layers tuned + graph filter": LARGE | TUNED,
        }.items()
        for r in lastfm_trained(name, extra, (0,))
    ]


def retailrocket():
    "Hold out one purchase of each user, with every event of that pair; choose on the last purchase of the rest."
    data, rows = Retailrocket(), []
    graph = data.graph(data.events)
    final = fit_final(graph, TrainingSettings(), holdout=(data.graph(data.part), data.valid))
    print(f"retailrocket: epoch {final.best_epoch}, b {final.b:g}, {final.filter}", flush=True)
    made = {"LightGCN + graph filter, defaults": final.recommender}
    if final.b:
        made |= {"LightGCN + graph filter, defaults: LightGCN alone": lightgcn_of(final.recommender)}
    chosen = dict.fromkeys(made, RETAILROCKET_CHOSEN)
    made |= {
        "most popular": Popular().fit(graph),
        "graph filter, paths": GraphFilter().fit(graph),
        "truncated SVD, d 64": SVDRecommender(64).fit(graph),
        "ALS, d 64": ALSRecommender().fit(graph),
    }
    for name, model in made.items():
        rows += scores(
            name,
            "retailrocket",
            [evaluate(model, data.test, (10,), "bought")],
            chosen.get(name, DEFAULTS),
            ("hit_rate@10", "ndcg@10"),
        )
    return rows


def shop():
    "The built-in shop through its own stages."
    clock = Clock()
    params = example_project("inference", dict(sample_data=dict(events=200_000, users=None, items=2000)))
    result = run_stage("inference", params)
    rows = [row("all stages", "built-in shop", "seconds", clock.wall, "s")]
    model = ("hybrid", "lightgcn", "graph filter (paths)", "graph filter (chebyshev)", "graph filter (regression)")
    for e in result.evaluations:
        rows += scores(e.name, "built-in shop", [e], "validation: its window in time" if e.name in model else DEFAULTS)
    return rows


SHORT = {
    "gowalla-filters": gowalla_filters,
    "gowalla-fast": gowalla_fast,
    "gowalla-fast-order": gowalla_fast_order,
    "lastfm": lastfm,
    "retailrocket": retailrocket,
    "shop": shop,
}
LONG = {
    "lastfm-large": lastfm_large,
    "gowalla-baselines": gowalla_baselines,
    "gowalla-chebyshev": gowalla_chebyshev,
    "gowalla-final": gowalla_final,
    "gowalla-final-order": gowalla_final_order,
}


def run(full=False, only=()):
    "Measure each part and write its rows as soon as they are there."
    parts, on = {**SHORT, **LONG}, machine()
    for name in named_parts("accuracy", parts, only or (parts if full else SHORT)):
        print(f"-- {name}", flush=True)
        write("accuracy", parts[name](), on=on)
