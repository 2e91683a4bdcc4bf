"""What event weights bring.

Purchases alone, all events alike, weights by behaviour, recency, weighted or plain propagation,
and what counts as positive.
"""

import numpy as np
from gnn_ecommerce.models.baselines import ALSRecommender
from gnn_ecommerce.core import example_project, load_settings, read_table
from gnn_ecommerce.ranking.evaluation import bootstrap_ci, evaluate
from gnn_ecommerce.graph_build import EventWeights, GraphBuildSettings
from gnn_ecommerce.filter.graph_filter import GraphFilter
from gnn_ecommerce.filter.choose import choose_filter
from gnn_ecommerce.ranking.recommender import Popular
from gnn_ecommerce.training import TrainingSettings, fit
from gnn_ecommerce.run.tuning import GraphMaker

from benchmarks.common import FIELDS, machine, named_parts, write
from benchmarks.protocol import RETAILROCKET_CHOSEN, Retailrocket, fit_final

LOW, MILD, STRONG = (
    EventWeights(view=view, cart=cart, remove_from_cart=remove)
    for view, cart, remove in ((0.01, 0.1, -0.09), (0.1, 0.3, -0.3), (0.2, 0.5, -0.5))
)
#: name -> what of graph_build differs
GRAPHS = {
    "purchases alone": dict(scheme="purchase_only"),
    "all events alike": dict(scheme="unweighted"),
    "1 / .1 / .01 (the reference's)": dict(weights=LOW),
    "1 / .3 / .1": dict(weights=MILD),
    "1 / .5 / .2": dict(weights=STRONG),
    "1 / .3 / .1, log": dict(scheme="log_count", weights=MILD),
    "1 / .3 / .1, half-life 90 days": dict(scheme="recency", weights=MILD, half_life_days=90.0),
    "1 / .3 / .1, half-life 30 days": dict(scheme="recency", weights=MILD, half_life_days=30.0),
    "1 / .3 / .1, half-life 7 days": dict(scheme="recency", weights=MILD, half_life_days=7.0),
}
#: what of training differs, on one of the graphs above
TRAININGS = {
    "1 / .3 / .1, plain propagation": ("1 / .3 / .1", dict(weighted=False)),
    "1 / .3 / .1, positives: bought": ("1 / .3 / .1", dict(positives="bought")),
    "1 / .3 / .1, positives by weight": ("1 / .3 / .1", dict(weighted_positives=True)),
}
REFERENCE = "1 / .1 / .01 (the reference's)"
DRAWS = 1000


def interval(name, dataset, metric, values, split, chosen_on):
    "A row of a mean over users: min and max are its 95 % bootstrap interval, runs the draws."
    ci = bootstrap_ci(np.asarray(values, float), DRAWS).iloc[0]
    digits = {k: float(f"{v:.5g}") for k, v in dict(value=ci["mean"], min=ci.low, max=ci.high).items()}
    digits |= dict(min=min(digits["min"], digits["value"]), max=max(digits["max"], digits["value"]))
    filled = (
        dict(
            name=name,
            dataset=dataset,
            metric=metric,
            split=split,
            unit="",
            runs=DRAWS,
            peer=None,
            ratio=None,
            chosen_on=chosen_on,
        )
        | digits
    )
    return {k: filled[k] for k in FIELDS}


def table(found, dataset, split, chosen_on, metrics, against):
    "Rows of several methods: each metric with its interval, and the paired difference to one of them."
    rows = []
    for name, e in found.items():
        for m in metrics:
            rows.append(interval(name, dataset, m, e.per_user[m], split, chosen_on))
            if name != against:
                rows.append(
                    interval(
                        name,
                        dataset,
                        f"{m} minus {against}",
                        e.per_user[m] - found[against].per_user[m],
                        split,
                        chosen_on,
                    )
                )
    return rows


def retailrocket():
    "The graph filter and ALS on every graph, neither of them with any choice."
    data, metrics, dataset, rows = Retailrocket(), ("hit_rate@10", "ndcg@10"), "retailrocket", []
    graphs = {name: (data.graph(data.part, **s), data.graph(data.events, **s)) for name, s in GRAPHS.items()}
    for method, make in {"graph filter": GraphFilter, "ALS": ALSRecommender}.items():
        found = {}
        for name, pair in graphs.items():
            for graph, split, targets in ((pair[0], "validation", data.valid), (pair[1], "test", data.test)):
                model = make().fit(graph)
                for exclude, where in (("bought", dataset), ("seen", f"{dataset}, seen masked")):
                    found.setdefault((where, split), {})[f"{method}: {name}"] = evaluate(model, targets, (10,), exclude)
        for (where, split), evaluations in found.items():
            rows += table(evaluations, where, split, "nothing: defaults", metrics, f"{method}: {REFERENCE}")
            print(where, split, {k: round(e.metrics["ndcg@10"], 4) for k, e in evaluations.items()}, flush=True)
    rows.append(
        interval(
            "most popular",
            dataset,
            "hit_rate@10",
            evaluate(Popular().fit(graphs[REFERENCE][1]), data.test, (10,), "bought").per_user["hit_rate@10"],
            "test",
            "nothing: defaults",
        )
    )
    return rows


HYBRIDS = (REFERENCE, "all events alike", "1 / .3 / .1", "1 / .5 / .2")


def retailrocket_trained(exclude="bought"):
    "LightGCN with the graph filter: epoch, b and exponents chosen on validation, trained again on all events."
    data, metrics, dataset, values, found = Retailrocket(), ("hit_rate@10", "ndcg@10"), "retailrocket", {}, {}
    graphs = {
        name: (data.graph(data.part, **GRAPHS[name]), data.graph(data.events, **GRAPHS[name])) for name in HYBRIDS
    }
    for name, (at, settings) in {**{n: (n, {}) for n in HYBRIDS}, **TRAININGS}.items():
        s = TrainingSettings(
            monitor="ndcg@10",
            ks=[10],
            filter="paths",
            temperature=0.2,
            exclude=exclude,
            b=[0.0, 5.0, 15.0, 30.0, 50.0, 100.0, 200.0],
            **settings,
        )
        final = fit_final(graphs[at][1], s, holdout=(graphs[at][0], data.valid))
        found[f"LightGCN + graph filter: {name}"] = evaluate(final.recommender, data.test, (10,), exclude)
        values[name] = final.validation
        print(
            dataset,
            name,
            f"validation {final.validation:.4f}, epoch {final.best_epoch}, b {final.b:g}, {final.filter}",
            flush=True,
        )
    best = max(values, key=values.get)
    found["LightGCN + graph filter: as validation chooses"] = found[f"LightGCN + graph filter: {best}"]
    return table(found, dataset, "test", RETAILROCKET_CHOSEN, metrics, f"LightGCN + graph filter: {REFERENCE}")


WIDE = {"alpha": (0.5, 0.3, 0.0, 0.66), "gamma": (0.5, 0.84, 0.25), "beta": (0.0, 0.1, 0.2), "weighted": (True, False)}


def retailrocket_chosen():
    "Weights, exponents, epoch and b all chosen on validation, for both masks, beside ALS with weights chosen likewise."
    data, metrics, rows = Retailrocket(), ("hit_rate@10", "ndcg@10"), []
    graphs = {
        name: (data.graph(data.part, **GRAPHS[name]), data.graph(data.events, **GRAPHS[name])) for name in HYBRIDS
    }
    for exclude, dataset in (("bought", "retailrocket"), ("seen", "retailrocket, seen masked")):
        chosen = {n: choose_filter(g[0], data.valid, "paths", WIDE, "ndcg@10", exclude) for n, g in graphs.items()}
        best = max(chosen, key=lambda n: chosen[n][1]["ndcg@10"].max())
        params = {k: chosen[best][0].params[k] for k in WIDE}
        s = TrainingSettings(
            monitor="ndcg@10",
            ks=[10],
            filter="paths",
            temperature=0.2,
            exclude=exclude,
            b=[0.0, 5.0, 15.0, 30.0, 50.0, 100.0, 200.0],
            filter_search=False,
            filter_params=params,
        )
        final = fit_final(graphs[best][1], s, holdout=(graphs[best][0], data.valid))
        als = max(
            graphs,
            key=lambda n: evaluate(ALSRecommender().fit(graphs[n][0]), data.valid, (10,), exclude).metrics["ndcg@10"],
        )
        print(
            dataset,
            best,
            params,
            f"validation {final.validation:.4f}, epoch {final.best_epoch}, b {final.b:g}; ALS {als}",
            flush=True,
        )
        found = {
            "ALS: weights chosen": evaluate(ALSRecommender().fit(graphs[als][1]), data.test, (10,), exclude),
            "LightGCN + graph filter: weights and exponents chosen": evaluate(
                final.recommender, data.test, (10,), exclude
            ),
            "graph filter: weights and exponents chosen": evaluate(
                GraphFilter(**chosen[best][0].params).fit(graphs[best][1]), data.test, (10,), exclude
            ),
        }
        rows += table(found, dataset, "test", RETAILROCKET_CHOSEN, metrics, "ALS: weights chosen")
    return rows


def shop(events=200_000):
    "The built-in shop: the same graphs through the pipeline's own split, all on the same users."
    params = example_project(
        "training", dict(sample_data=dict(events=events, users=None, items=2000), training=dict(filter="paths"))
    )
    maker, base = (
        GraphMaker(params.parent, load_settings(GraphBuildSettings, "graph_build", params)),
        load_settings(TrainingSettings, "training", params),
    )
    test, _ = maker.reference.encode_pairs(read_table(maker.paths.processed / "test.parquet", "targets", "data_prep"))
    metrics, dataset, chosen_on = ("recall@20", "ndcg@20"), "built-in shop", "validation: its window in time"
    plain, filters, values = {}, {}, {}
    for name, (at, settings) in {**{n: (n, {}) for n in GRAPHS}, **TRAININGS}.items():
        graph = maker(GraphBuildSettings(**GRAPHS[at]))
        result = fit(graph, base.model_copy(update=settings), maker.targets)
        values[name] = result.best_value
        plain[f"LightGCN + graph filter: {name}"] = evaluate(result.recommender, test, (20,), "bought", maker.targets)
        if not settings:
            filters[f"graph filter: {name}"] = evaluate(GraphFilter().fit(graph), test, (20,), "bought", maker.targets)
        print(
            dataset,
            name,
            f"validation {result.best_value:.4f}, epoch {result.best_epoch}, {result.scoring}",
            flush=True,
        )
    plain["LightGCN + graph filter: as validation chooses"] = plain[
        f"LightGCN + graph filter: {max(values, key=values.get)}"
    ]
    return table(plain, dataset, "test", chosen_on, metrics, f"LightGCN + graph filter: {REFERENCE}") + table(
        filters, dataset, "test", "nothing: defaults", metrics, f"graph filter: {REFERENCE}"
    )


PARTS = {
    "retailrocket": retailrocket,
    "retailrocket-trained": retailrocket_trained,
    "retailrocket-chosen": retailrocket_chosen,
    "shop": shop,
}


def run(full=False, only=()):
    "Measure each part and write its rows as soon as they are there."
    on = machine()
    for name in named_parts("event_weights", PARTS, only):
        print(f"-- {name}", flush=True)
        write("event_weights", PARTS[name](), on=on)
