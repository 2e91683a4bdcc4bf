"""The model server over HTTP: requests a second, times of an answer and processor time at 1, 32 and 128 connections.

`python -m benchmarks.serving PART...`:
- `compare` beside TorchServe. Both serve the same bundle: 10,000 customers, 54,571 products, 64 numbers each, the 20
  best less what was bought. TorchServe needs an environment of its own: GNN_ECOMMERCE_TORCHSERVE names its command.
- `http` the same answer behind our HTTP server, Granian and uvicorn (two minutes).
- `whole_shop` a shop of 1.64 million customers.
Every request asks for one random customer. Load comes from wrk, in one thread."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

import psutil
import torch
from gnn_ecommerce.bundle import BundleSettings, build_bundle, open_bundle
from gnn_ecommerce.core import GnnEcommerceError, rng
from gnn_ecommerce.graph.interactions import random_graph
from gnn_ecommerce.serving.torchserve import write_archive

from benchmarks.common import ROOT, machine, read, row, write
from benchmarks.run import show

DATASET, CONNECTIONS, K, DIM = "54,571 items, d 64", (1, 32, 128), 20, 64
WHOLE = "1,639,358 customers, 54,571 items, d 64"
METRICS = {
    "requests_per_s": "requests/s",
    "p50_ms": "ms",
    "p95_ms": "ms",
    "p99_ms": "ms",
    "cpu_ms": "ms",
    "failed_share": None,
}

SCRIPT = """
local ids, path, ours = %d, "%s", %s
function init(args) math.randomseed(tonumber(tostring({}):sub(8)) or os.time()) end
function request()
  local c = math.random(0, ids-1)
  local form = ours and '{"requests":[{"customer":%%d,"k":20}]}' or '{"customer":%%d,"k":20}'
  return wrk.format("POST", path, {["Content-Type"]="application/json"}, string.format(form, c))
end
function done(summary, latency, requests)
  local e, ms = summary.errors, function(p) return latency:percentile(p)/1000 end
  io.write(string.format('{"requests":%%d,"us":%%d,"p50":%%.3f,"p95":%%.3f,"p99":%%.3f,',
    summary.requests, summary.duration, ms(50), ms(95), ms(99)))
  io.write(string.format('"errors":%%d,"connect":%%d,"read":%%d,"write":%%d,"status":%%d,"timeout":%%d}\\n',
    e.status+e.connect+e.read+e.write+e.timeout, e.connect, e.read, e.write, e.status, e.timeout))
end
"""


def random_bundle(folder, n_users, n_items, n_edges, lists, version):
    "A bundle of a model that has learned nothing; speed does not depend on what was learned."
    graph = random_graph(n_users, n_items, n_edges, seed=0)
    tensors = {
        "embedding.weight": torch.from_numpy(rng(0, "serving").standard_normal((n_users + n_items, DIM), "float32")),
        "alpha": torch.full((3,), 1 / 3),
    }
    return build_bundle(
        folder,
        graph,
        tensors,
        dict(weighted=True, cosine=True, b=0.0, filter=None),
        BundleSettings(lists=lists),
        model_version=version,
    )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def wait_for(url, process, seconds=120):
    "Until something answers 200."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise GnnEcommerceError(f"server: expected it to run, found exit code {process.returncode}")
        try:
            if urllib.request.urlopen(url, timeout=2).status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise GnnEcommerceError(f"server: expected an answer of {url} within {seconds} s, found none")


@contextmanager
def ours(bundle, folder, workers):
    "The model server with a bundle; yields its address."
    port, log = free_port(), open(folder / f"server-{bundle.name}-{workers}.log", "w")
    args = [
        sys.executable,
        "-m",
        "gnn_ecommerce.model_server",
        "--bundle",
        str(bundle.path),
        "--pointer",
        str(folder / f"{bundle.name}.json"),
        "--port",
        str(port),
        "--workers",
        str(workers),
    ]
    process = subprocess.Popen(args, cwd=ROOT, stdout=log, stderr=log)
    try:
        while "Model server on" not in Path(log.name).read_text():
            if process.poll() is not None:
                raise GnnEcommerceError(Path(log.name).read_text())
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


TORCHSERVE = """inference_address=http://127.0.0.1:{0}
management_address=http://127.0.0.1:{1}
metrics_address=http://127.0.0.1:{2}
grpc_inference_port={3}
grpc_management_port={4}
disable_token_authorization=true
metrics_mode=prometheus
model_store={5}
load_models=lightgcn.mar
models={{"lightgcn":{{"{6}":{{"marName":"lightgcn.mar",\
"minWorkers":{7},"maxWorkers":{7},"batchSize":64,"maxBatchDelay":{8},"responseTimeout":120}}}}}}
"""

QUIET = '''<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
<Appenders><Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="%d %p %m%n"/></Console></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
'''


@contextmanager
def torchserve(command, bundle, folder, workers=2, delay=1):
    "TorchServe with the same bundle; yields its address."
    store, ports = folder / "store", [free_port() for _ in range(5)]
    write_archive(bundle.path, store / "lightgcn.mar")
    (store / "config.properties").write_text(TORCHSERVE.format(*ports, store, bundle.model_version, workers, delay))
    (store / "log4j2.xml").write_text(QUIET)
    env = {
        **os.environ,
        "PATH": f"{Path(command).parent}:{os.environ['PATH']}",
        "TEMP": str(store),
        "LOG_LOCATION": str(store / "logs"),
        "METRICS_LOCATION": str(store / "logs"),
    }
    env.pop("PYTHONPATH", None)
    with open(folder / "torchserve.log", "w") as log:
        process = subprocess.Popen(
            [
                command,
                "--start",
                "--foreground",
                "--ncs",
                "--ts-config",
                str(store / "config.properties"),
                "--log-config",
                str(store / "log4j2.xml"),
            ],
            cwd=store,
            stdout=log,
            stderr=log,
            env=env,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{ports[0]}/ping", process)
            for _ in range(600):
                try:
                    ask(f"http://127.0.0.1:{ports[0]}/predictions/lightgcn", {"customer": 1})
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{ports[0]}", process
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
            process.terminate()
            process.wait(30)


def ask(url, body):
    "The answer to one question."
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=30))


def family(process):
    "A server's process and its workers."
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def cpu_seconds(process):
    "Processor time of a server and its workers so far."
    return sum(sum(p.cpu_times()[:2]) for p in family(process))


def wrk(server, mine, connections, seconds, n_users):
    "One run of wrk. `cpu_ms` is processor time of the server's processes for one request, whatever else ran."
    (url, process), before = server[:2], cpu_seconds(server[1])
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as f:
        f.write(SCRIPT % (n_users, "/recommend" if mine else "/predictions/lightgcn", "true" if mine else "false"))
        f.flush()
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", f.name, url],
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(re.search(r"^{.*}$", done.stdout, re.M)[0])
    if found["errors"]:
        print(f"load: {url}, {connections} connections: {found}", flush=True)
    return dict(
        requests_per_s=found["requests"] / found["us"] * 1e6,
        p50_ms=found["p50"],
        p95_ms=found["p95"],
        p99_ms=found["p99"],
        cpu_ms=1e3 * (cpu_seconds(process) - before) / max(found["requests"], 1),
        failed_share=found["errors"] / max(found["requests"], 1),
    )


def rows_of(measured, peer="TorchServe"):
    "Rows of the result file, a ratio to TorchServe where it ran."
    rows = []
    for (name, connections), runs in measured.items():
        for metric, unit in METRICS.items():
            values, label = [r[metric] for r in runs], f"{name}, {connections} connections"
            rows.append(row(label, DATASET, metric, values, unit))
            if metric == "failed_share":
                continue
            other = measured.get((peer, connections))
            if other and name != peer:
                rows.append(
                    row(
                        label,
                        DATASET,
                        metric,
                        values,
                        unit,
                        peer=f"{peer}, {connections} connections",
                        peer_values=[r[metric] for r in other],
                        higher_is_better=metric == "requests_per_s",
                    )
                )
    return rows


def compare(seconds=5, rounds=2):
    "All servers run; each gets its load in turn."
    on, measured = machine(), {}
    command = os.environ.get("GNN_ECOMMERCE_TORCHSERVE")
    with tempfile.TemporaryDirectory() as d, ExitStack() as stack:
        folder = Path(d)
        listed, plain = (
            random_bundle(folder / "bundles", 10_000, 54_571, 310_000, lists, f"random-{lists}") for lists in (50, 0)
        )
        servers = {
            "gnn_ecommerce, lists in the bundle": (*stack.enter_context(ours(listed, folder, 2)), True),
            "gnn_ecommerce, every list scored": (*stack.enter_context(ours(plain, folder, 2)), True),
        }
        if command:
            servers["TorchServe"] = (*stack.enter_context(torchserve(command, plain, folder)), False)
        else:
            print("GNN_ECOMMERCE_TORCHSERVE is unset: TorchServe is left out")
        for server in servers.values():
            wrk(server, server[2], 8, 2, 10_000)
        for _ in range(rounds):
            for connections in CONNECTIONS:
                for name, server in servers.items():
                    measured.setdefault((name, connections), []).append(
                        wrk(server, server[2], connections, seconds, 10_000)
                    )
    versions = {"torchserve": "0.12.0"} if command else {}
    write("serving", rows_of(measured), extra_versions=versions, on=on)


@contextmanager
def other(command, bundle, folder, name):
    "Another server with the same engine; yields its address."
    port = free_port()
    with open(folder / f"{name}.log", "w") as log:
        env = {**os.environ, "GNN_ECOMMERCE_BUNDLE": str(bundle.path), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port), "--workers", "2"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=env,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/livez", process)
            yield f"http://127.0.0.1:{port}", process
        finally:
            for p in reversed(family(process)):  # Granian may miss SIGTERM soon after its start
                p.kill()
            process.wait(30)


UVICORN = ("--log-level", "warning", "--loop", "uvloop", "--http", "httptools", "--no-access-log")
OTHERS = {
    "Granian, plain ASGI and msgspec": (
        *("granian", "benchmarks.serving_apps:plain", "--interface", "asgi"),
        *("--log-level", "warning", "--loop", "uvloop"),
    ),
    "uvicorn, plain ASGI and msgspec": ("uvicorn", "benchmarks.serving_apps:plain", *UVICORN),
    "uvicorn, FastAPI and pydantic": ("uvicorn", "benchmarks.serving_apps:fastapi", "--factory", *UVICORN),
}


def http(seconds=3, rounds=3):
    "What the HTTP side costs: one answer of one engine behind our HTTP server and behind others, in turn."
    on, measured = machine(), {}
    with tempfile.TemporaryDirectory() as d, ExitStack() as stack:
        bundle = random_bundle(Path(d) / "bundles", 20_000, 54_571, 140_000, 50, "random")
        servers = {"own server": stack.enter_context(ours(bundle, Path(d), 2))}
        for n, (name, command) in enumerate(OTHERS.items()):
            servers[name] = stack.enter_context(other(command, bundle, Path(d), f"other-{n}"))
        for server in servers.values():
            wrk(server, True, 32, 2, 20_000)
        for _ in range(rounds):
            for connections in CONNECTIONS:
                for name, server in servers.items():
                    run = wrk(server, True, connections, seconds, 20_000)
                    measured.setdefault((name, connections), []).append(run)
    versions = {name: metadata.version(name) for name in ("granian", "uvicorn", "fastapi", "httptools", "uvloop")}
    write("http_servers", rows_of(measured, peer="Granian, plain ASGI and msgspec"), extra_versions=versions, on=on)
    rows = [r for r in read("http_servers")["rows"] if r["metric"] in ("requests_per_s", "p99_ms", "cpu_ms")]
    show({"rows": rows})


def memory(process):
    "Gigabytes of a server and its workers: proportional shares, so that a page that several map counts once."
    return sum(p.memory_full_info().pss for p in family(process)) / 1e9


def whole_shop(seconds=5):
    "Size, time to open, memory and speed of a bundle of a whole shop."
    on, rows = machine(), []
    with tempfile.TemporaryDirectory(dir=os.environ.get("GNN_ECOMMERCE_TEMP")) as d:
        start = time.perf_counter()
        bundle = random_bundle(Path(d) / "bundles", 1_639_358, 54_571, 10_157_408, 0, "whole")
        rows.append(row("building, without lists", WHOLE, "seconds", time.perf_counter() - start, "s"))
        rows.append(row("bundle on disk, without lists", WHOLE, "gigabytes", bundle.size / 1e9, "GB"))
        for check in ("full", "sizes"):
            taken = []
            for _ in range(3):
                start = time.perf_counter()
                open_bundle(bundle.path, check)
                taken.append(time.perf_counter() - start)
            rows.append(
                row(
                    f"opening, {'every byte hashed' if check == 'full' else 'sizes looked at'}",
                    WHOLE,
                    "seconds",
                    taken,
                    "s",
                )
            )
        for workers in (1, 4):
            start = time.perf_counter()
            with ours(bundle, Path(d), workers) as server:
                rows.append(
                    row(f"until it answers, {workers} workers", WHOLE, "seconds", time.perf_counter() - start, "s")
                )
                figures = wrk(server, True, 32, seconds, 1_639_358)
                rows += [
                    row(f"every list scored, {workers} workers, 32 connections", WHOLE, m, figures[m], unit)
                    for m, unit in METRICS.items()
                ]
                rows.append(row(f"memory under load, {workers} workers", WHOLE, "gigabytes", memory(server[1]), "GB"))
    write("serving", rows, on=on)


PARTS = {"compare": compare, "http": http, "whole_shop": whole_shop}


def run(full=False, only=None):
    "The comparison; with `full` also other servers with the same engine, and the whole shop."
    if shutil.which("wrk") is None:
        raise GnnEcommerceError("load: expected wrk on the PATH, found none: apt-get install wrk")
    for part in only or (PARTS if full else ["compare"]):
        if part not in PARTS:
            raise GnnEcommerceError(f"only: expected {', '.join(PARTS)}, found {part}")
        PARTS[part]()


if __name__ == "__main__":
    run(only=sys.argv[1:])
