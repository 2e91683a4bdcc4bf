"""Run benchmark suites and write their result files: `python -m benchmarks.run SUITE... [--full]`."""

import argparse
import importlib
import inspect
import os
import sys

from benchmarks.common import read

SUITES = (
    "propagation",
    "epoch",
    "accuracy",
    "baselines",
    "topk",
    "explain",
    "whole_shop",
    "serving",
    "event_weights",
    "tuning",
    "explorer",
    "gpu",
    "preparation",
    "nights",
)
# only where they are named, or with --full
SLOW = ("baselines", "event_weights", "tuning", "explorer", "preparation", "nights")


def main(argv=None):
    "The command line."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"one or more of {', '.join(SUITES)}; all by default"
    )
    parser.add_argument("--full", action="store_true", help="also what takes minutes or more")
    parser.add_argument(
        "--only",
        default="",
        metavar="PART,PART",
        help="of suite accuracy, baselines, whole_shop, preparation, serving, event_weights, tuning: these parts",
    )
    args = parser.parse_args(argv)
    unknown = [s for s in args.suites if s not in SUITES]
    if unknown:
        parser.error(f"expected suites among {', '.join(SUITES)}, found {', '.join(unknown)}")
    if not os.environ.get("GNN_ECOMMERCE_DATA"):
        parser.error(
            "expected GNN_ECOMMERCE_DATA to name a folder of public data, found it unset: "
            "`python -m benchmarks.download FOLDER` fills one"
        )
    for suite in args.suites or [s for s in SUITES if args.full or s not in SLOW]:
        print(f"== {suite}{' (full)' if args.full else ''}", flush=True)
        run = importlib.import_module(f"benchmarks.{suite}").run
        run(
            full=args.full,
            **({"only": [p for p in args.only.split(",") if p]} if "only" in inspect.signature(run).parameters else {}),
        )
        if result := read(suite):
            show(result)
    return 0


def show(result):
    "A result file as lines of text."
    for r in result["rows"]:
        spread = f"({r['min']:.4g} to {r['max']:.4g}, {r['runs']} runs)" if r["runs"] > 1 else ""
        beside = f"{r['ratio']:.4g} x {r['peer']}" if r["ratio"] is not None else ""
        print(f"{r['dataset']:12} {r['name']:44} {r['metric']:14} {r['value']:<10.5g} {spread:34} {beside}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
