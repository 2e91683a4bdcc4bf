"""From events to graph at several sizes: suite `whole_shop` without its later stages, minutes in place of an hour."""

from benchmarks.shop import EVENTS_TO_GRAPH, run_sizes, sizes_named


def run(full=False, only=()):
    "The stages up to graph_build, in one `dvc repro` a size."
    run_sizes(sizes_named(only, full), EVENTS_TO_GRAPH[-1])
