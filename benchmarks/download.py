"""Fetch the public data that the benchmarks use into a folder and check it: `python -m benchmarks.download FOLDER`.

retailrocket (HKUDS/SSLRec) has no plain files at its origin and is not fetched:
its rows need the folder that README.md describes.
"""

import argparse
import sys
import urllib.request
from pathlib import Path

from gnn_ecommerce.core import atomic_path, file_hash

RAW = "https://raw.githubusercontent.com"
FILES = {
    "gowalla/test.txt": (
        f"{RAW}/kuandeng/LightGCN/b067ec05f16a24e0e1efe63cd82385f0c469af20/Data/gowalla/test.txt",
        "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3",
    ),
    "gowalla/train.txt": (
        f"{RAW}/kuandeng/LightGCN/b067ec05f16a24e0e1efe63cd82385f0c469af20/Data/gowalla/train.txt",
        "7244696fdeb23911319cf7b689f2e15a3c4c92549c873a5677b44e3f13cc3e62",
    ),
    "lastfm/test.txt": (
        f"{RAW}/geon0325/LightGCNpp/a394f79a7aceb8f485f6bcb549b4865fe83f1d49/data/lastfm/test.txt",
        "0f0a15e3de2f868554ee1e32190c51db3e0ad0c4138e1428c66ba6de86102755",
    ),
    "lastfm/train.txt": (
        f"{RAW}/geon0325/LightGCNpp/a394f79a7aceb8f485f6bcb549b4865fe83f1d49/data/lastfm/train.txt",
        "1845769cb1a9834692d3cf884de523d23aa126fa6b58eb5f49e9628e8c317705",
    ),
    "lastfm/valid.txt": (
        f"{RAW}/geon0325/LightGCNpp/a394f79a7aceb8f485f6bcb549b4865fe83f1d49/data/lastfm/valid.txt",
        "9ae3440becfcbba19d5a5a8298b7933126f89424a468de5765bf1c6f08a9e3eb",
    ),
}


def fetch(name, folder, opener=urllib.request.urlopen):
    "Fetch one file unless it is there already. Raises `ValueError` where its sha256 is not the expected one."
    url, sha = FILES[name]
    path = Path(folder) / name
    if path.is_file() and file_hash(path) == sha:
        return "there already"
    with atomic_path(path) as tmp:
        with opener(url) as answer:
            tmp.write_bytes(answer.read())
        found = file_hash(tmp)
        if found != sha:
            raise ValueError(
                f"{name}: expected sha256 {sha}, found {found} at {url}: the origin has changed; get the file elsewhere"
            )
    return "fetched"


def main(argv=None):
    "The command line."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.download", description=__doc__)
    parser.add_argument("folder", help="where the data goes; set GNN_ECOMMERCE_DATA to it afterwards")
    folder, failed = parser.parse_args(argv).folder, 0
    for name in FILES:
        try:
            print(f"{name}: {fetch(name, folder)}")
        except (OSError, ValueError) as err:
            print(f"{name}: {err}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
