"""A graph neural network recommender for online shops. The names that a notebook needs, loaded when used."""

import importlib

__version__ = "0.1.0"

#: public name -> module that defines it
_NAMES = {
    "InteractionGraph": "graph.interactions",
    "LightGCN": "models.pyg",
    "LightGCNRecommender": "lightgcn",
    "GraphFilter": "filter.graph_filter",
    "TrainingSettings": "training",
    "fit": "training",
    "evaluate": "ranking.evaluation",
    "load_checkpoint": "models.checkpoint",
    "Explainer": "explain.shares",
    "PathExplorer": "explore.page",
    "recommend_from_events": "run.from_events",
}
__all__ = sorted(_NAMES)


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)


def __dir__():
    return [*globals(), *_NAMES]
