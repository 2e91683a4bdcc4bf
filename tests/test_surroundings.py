"""What is around a run: Ctrl-C, proxies, a second command, another shop's settings."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT

from gnn_ecommerce import cli, model_server
from gnn_ecommerce.core import read_params
from gnn_ecommerce.run import pipeline
from gnn_ecommerce.run.pipeline import alone, main, own_events, without_other_shop


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder with settings, in which nothing has run."
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf8"), encoding="utf8")
    monkeypatch.setenv("GNN_ECOMMERCE_ROOT", str(tmp_path))
    return tmp_path


def test_ctrl_c_is_one_sentence_and_130(tmp_path):
    os.mkfifo(tmp_path / "events.csv")
    command = [sys.executable, "-m", "gnn_ecommerce.cli", "doctor", str(tmp_path / "events.csv")]
    # started in the background of a shell, as in a script, this process would ignore the signal, and so would its child
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeds) as process:
        with open(tmp_path / "events.csv", "w"):  # goes on when the command reads
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "gnn-ecommerce doctor: stopped\n")


def test_a_server_on_this_machine_is_called_without_a_proxy(monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"path": self.path}).encode())

        def log_message(self, *args):
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request).start()
        assert cli._post(f"http://127.0.0.1:{server.server_port}/admin/activate", {}) == {"path": "/admin/activate"}


@pytest.mark.parametrize("words", [["overlay"], ["demo", "--size", "4k", "--params"], ["tune", "--params"]])
def test_a_second_command_changes_nothing_while_one_runs(project, words, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "_has_extra", lambda stage: True)  # its import takes long
    (project / "other.yaml").write_text("seed: 7\n")
    before = (project / "params.yaml").read_bytes()
    with alone(project):
        assert main([*words, str(project / "other.yaml")]) == 1
    assert "wait for it; nothing was changed" in capsys.readouterr().err
    assert (project / "params.yaml").read_bytes() == before


def test_another_shop_takes_back_how_the_first_was_read(project):
    events = "event_time,event_type,product_id,user_id\n"
    for name in ("first", "second"):
        (project / f"{name}.csv").write_text(events)
    params = read_params(project / "params.yaml")
    params["data_prep"] |= {"events": "first.csv", "timestamps": "DD.MM.YYYY", "constants": {"event_type": "purchase"}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    same, other = (without_other_shop(own_events(f"{name}.csv", project), project) for name in ("first", "second"))
    assert "timestamps" not in same["data_prep"]
    assert (other["data_prep"]["timestamps"], other["data_prep"]["constants"]) == ("auto", {})


def test_a_server_on_a_read_only_disk_keeps_no_pointer(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(model_server, "write_json", refuse)
    supervisor = SimpleNamespace(settings=SimpleNamespace(pointer=tmp_path / "active.json"), _stamp=lambda: None)
    model_server.Supervisor._point(supervisor, {"active": "a", "canary": None, "share": 0.0, "previous": None})
    assert "cannot be written (Read-only file system): a restart begins as this one" in capsys.readouterr().out
