"""What each stage takes at several sizes: 0.2 M events; with `--full` also 2 M and the whole shop's 20.7 M (an hour, 15 GB of disk)."""
from benchmarks.shop import SIZES, run_sizes


def run(full=False, only=()):
    "All sizes, the first one alone, or those of `only`, in millions of events, such as `0.2`."
    chosen = [d for d in SIZES if d.split()[2] in [o.split()[0] for o in only]] if only else list(SIZES) if full else list(SIZES)[:1]
    if not chosen: raise SystemExit(f"whole_shop: expected sizes among {', '.join(d.removeprefix('shop of ').removesuffix(' events') for d in SIZES)}, found {', '.join(only)}")
    run_sizes(chosen)
