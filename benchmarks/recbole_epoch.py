"""Seconds per batch of RecBole's LightGCN.

The suite `epoch` runs it with the interpreter of RecBole's own environment; see README.md there.
"""

import json
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path


def main(train, batch, dim, layers, n):
    "Write train.txt as a RecBole data set, train n batches after one to warm up, print the seconds of each as JSON."
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender import LightGCN

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "set").mkdir()
        with open(Path(folder) / "set" / "set.inter", "w") as f:
            f.write("user_id:token\titem_id:token\n")
            for line in Path(train).read_text().splitlines():
                user, *items = line.split()
                f.writelines(f"{user}\t{item}\n" for item in items)
        sys.argv = sys.argv[:1]
        config = Config(
            model="LightGCN",
            dataset="set",
            config_dict=dict(
                data_path=folder,
                load_col=dict(inter=["user_id", "item_id"]),
                embedding_size=dim,
                n_layers=layers,
                reg_weight=1e-4,
                train_batch_size=batch,
                use_gpu=False,
                eval_args=dict(split=dict(RS=[0.98, 0.01, 0.01]), group_by=None, order="RO", mode="full"),
                show_progress=False,
                checkpoint_dir=folder,
            ),
        )
        data, _, _ = data_preparation(config, create_dataset(config))
    import torch

    model, seconds = LightGCN(config, data._dataset), []
    optimizer, model_batches = torch.optim.Adam(model.parameters(), lr=0.001), iter(data)
    for _ in range(n + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        model.calculate_loss(next(model_batches)).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            dict(
                seconds=seconds[1:],
                versions={
                    f"{p} beside recbole" if p != "recbole" else p: metadata.version(p)
                    for p in ("recbole", "torch", "numpy", "scipy", "pandas")
                },
            )
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
