"""The same code on every device: on a GPU where there is one, and everywhere the plain torch code that a GPU takes, on the processor."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from gnn_ecommerce.models import losses
from gnn_ecommerce.graph.interactions import propagation
from gnn_ecommerce.core import GnnEcommerceError, SettingsError
from gnn_ecommerce.lightgcn import LightGCNRecommender
from gnn_ecommerce.graph.interactions import random_graph
from gnn_ecommerce.models.losses import LOSSES, make_loss
from gnn_ecommerce.graph.propagation import Adjacency, Propagation
from gnn_ecommerce.graph.kernels import compute_device
from gnn_ecommerce.training import Trainer, TrainingSettings, fit

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
GRAPH = random_graph(300, 200, 4000, seed=0)
TARGETS = sp.csr_matrix(np.random.default_rng(1).random((300, 200)) < 0.01)
QUICK = dict(dim=16, epochs=4, batch=64, temperature=0.2)


@pytest.fixture
def plain(monkeypatch):
    without_compiled_code(monkeypatch)


def without_compiled_code(monkeypatch):
    "On the processor, what a GPU takes."
    for module in (losses, propagation):
        monkeypatch.setattr(module, "HAS_NUMBA", False)


def tables(dtype, device, dim=16):
    "Final and layer-0 embeddings."
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(GRAPH.n_users + GRAPH.n_items, dim, generator=draw, dtype=torch.float64).to(device, dtype)
        for _ in range(2)
    ]


def one_step(name, device, dtype, **settings):
    "Loss and gradients of the first batch, on the processor."
    loss = make_loss(name, GRAPH, batch=50, l2=0.01, negatives=4, **settings)
    z, e0 = tables(dtype, device)
    grads = torch.zeros_like(z), torch.zeros_like(e0)
    batch = next(iter(loss.batches(np.random.default_rng(0))))
    value = loss.step(z, e0, batch, *grads)
    assert all(g.device == z.device for g in grads)
    return value, *(g.cpu().double() for g in grads)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, device, plain):
    "Loss and gradients equal those in double precision on the processor."
    exact, *exact_grads = one_step(name, "cpu", torch.float64)
    value, *grads = one_step(
        name, device, torch.float32, **({"precision": "fp32"} if name in ("softmax", "bsl") else {})
    )
    assert value == pytest.approx(exact, rel=1e-5)
    for g, e in zip(grads, exact_grads):
        assert e.abs().max() > 0
        torch.testing.assert_close(g, e, atol=1e-5 * float(e.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_softmax_in_bfloat16(device, plain):
    "Half the digits: near, not equal."
    exact, *exact_grads = one_step("softmax", "cpu", torch.float64)
    value, *grads = one_step("softmax", device, torch.float32, precision="bf16")
    assert value == pytest.approx(exact, rel=2e-3)
    for g, e in zip(grads, exact_grads):
        assert float((g - e).norm() / e.norm()) < 0.02


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_propagation(device, layers, plain):
    "Forward and backward equal those of the compiled code or of double precision; a table is used again."
    alpha = np.linspace(0.2, 1, layers + 1)
    p, reference = (Propagation(Adjacency.from_graph(GRAPH, weighted=True).to(d), alpha) for d in (device, "cpu"))
    e, exact = tables(torch.float32, device)[0], tables(torch.float64, "cpu")[0]
    for _ in range(2):
        for way in ("forward", "backward"):
            out = getattr(p, way)(e, torch.empty_like(e))
            assert out.device == e.device
            torch.testing.assert_close(out.cpu().double(), getattr(reference, way)(exact), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LOSSES)
def test_fit(name, device, monkeypatch):
    "A run on the device ends where one with compiled code does, and leaves everything on the processor."
    settings = TrainingSettings(loss=name, precision="fp32", l2=1e-4, **QUICK)
    here = fit(GRAPH, settings.model_copy(update=dict(device="cpu")), TARGETS)
    without_compiled_code(monkeypatch)
    there = fit(GRAPH, settings.model_copy(update=dict(device=device)), TARGETS)
    np.testing.assert_allclose(there.history.loss, here.history.loss, rtol=1e-3)
    np.testing.assert_allclose(there.history.value, here.history.value, atol=0.01)
    assert {t.device.type for t in there.tensors.values()} == {"cpu"}
    users = np.arange(300)
    assert np.mean(there.recommender.recommend(users, 10)[0] == here.recommender.recommend(users, 10)[0]) > 0.9


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_changes_device(device, tmp_path, plain):
    "A run interrupted on the processor goes on on the device, and the other way round."
    settings = TrainingSettings(precision="fp32", filter="none", **QUICK)
    whole = fit(GRAPH, settings.model_copy(update=dict(device="cpu")), TARGETS)

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    for first, second in (("cpu", device), (device, "cpu")):
        folder = tmp_path / f"{first} {second}"
        with pytest.raises(KeyboardInterrupt):
            fit(GRAPH, settings.model_copy(update=dict(device=first)), TARGETS, folder, on_epoch=stop)
        rest = fit(GRAPH, settings.model_copy(update=dict(device=second)), TARGETS, folder, resume="must")
        np.testing.assert_allclose(rest.history.loss, whole.history.loss, rtol=1e-3)


def test_too_little_memory(monkeypatch):
    "The message says what to lower."
    trainer = Trainer(GRAPH, TrainingSettings(filter="none", **QUICK))

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "one_step", full)
    with pytest.raises(GnnEcommerceError, match=r"500 x 16 embeddings and batch 64: lower training.batch"):
        trainer.run_epoch(trainer.start())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_too_little_memory_on_a_gpu():
    "The same, of a real GPU."
    graph = random_graph(200_000, 600_000, 800_000, seed=0)
    trainer = Trainer(graph, TrainingSettings(filter="none", dim=8, init="normal", batch=200_000, epochs=1))
    with pytest.raises(GnnEcommerceError, match=r"800,000 x 8 embeddings and batch 200,000: lower training.batch"):
        trainer.run_epoch(trainer.start())


def test_no_such_device():
    "A GPU that is not here is refused before anything is done."
    with pytest.raises(SettingsError, match="'cuda:99'"):
        Trainer(GRAPH, TrainingSettings(device="cuda:99"))
    assert compute_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_lists(device):
    "Lists are the same wherever scores are computed."
    z = tables(torch.float32, "cpu")[0]
    model = LightGCNRecommender(z[:300], z[300:]).fit(GRAPH)
    here = model.recommend(np.arange(300), 10)
    model.backend = "torch"
    there = model.to(compute_device(device)).recommend(np.arange(300), 10)
    assert np.mean(here[0] == there[0]) > 0.999
    np.testing.assert_allclose(here[1], there[1], atol=1e-5)
