"""The model server's commonest answer behind other servers: FastAPI with pydantic, and plain ASGI with msgspec.

The bundle is named by GNN_ECOMMERCE_BUNDLE."""

import os
from typing import Any

from gnn_ecommerce.bundle import open_bundle
from gnn_ecommerce.serving.engine import Engine
from gnn_ecommerce.serving.protocol import RecommendRequest, decode

ENGINE = Engine.of_bundle(open_bundle(os.environ["GNN_ECOMMERCE_BUNDLE"], "sizes"))


def body_of(requests):
    "The body of `POST /recommend`, as the model server makes it."
    return b'{"model_version":"x","results":[' + b",".join([ENGINE.to_json(f) for f in ENGINE.answer(requests)]) + b"]}"


async def plain(scope, receive, send):
    "ASGI without a framework."
    if scope["type"] != "http":
        return
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = body_of(decode(b"".join(parts), RecommendRequest).requests) if scope["path"] == "/recommend" else b"{}"
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


def fastapi():
    "FastAPI as its documentation has it: models in, models out."
    from fastapi import FastAPI
    from gnn_ecommerce.serving.protocol import Request
    from pydantic import BaseModel

    class One(BaseModel):
        customer: int | str | None = None
        k: int = 20

    class Body(BaseModel):
        requests: list[One]

    class Item(BaseModel):
        product_id: int | str
        rank: int
        score: float | None
        name: str | None = None
        brand: str | None = None
        category: str | None = None
        price: float | None = None

    class Result(BaseModel):
        customer: Any
        source: str
        model_version: str
        items: list[Item]

    class Answer(BaseModel):
        model_version: str
        results: list[Result]

    app = FastAPI()

    @app.post("/recommend")
    async def recommend(body: Body) -> Answer:
        lists = ENGINE.answer([Request(customer=r.customer, k=r.k) for r in body.requests])
        results = [
            Result(
                customer=listed.request.customer,
                source=listed.source,
                model_version=ENGINE.version,
                items=[Item.model_validate(item, from_attributes=True) for item in ENGINE.items(listed)],
            )
            for listed in lists
        ]
        return Answer(model_version=ENGINE.version, results=results)

    @app.get("/livez")
    async def livez():
        return {}

    return app
