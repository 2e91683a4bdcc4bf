"""What each stage takes at several sizes.

0.2 M events; with `--full` also 2 M and the whole shop's 20.7 M (an hour, 15 GB of disk).
"""

from benchmarks.shop import run_sizes, sizes_named


def run(full=False, only=()):
    "All stages, in one `dvc repro` a size."
    run_sizes(sizes_named(only, full))
