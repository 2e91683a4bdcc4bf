"""The wire format of the model server: what is refused, and with which status."""

import pytest
from shop import named

from gnn_ecommerce.serving.protocol import MAX_BODY, ProblemError, RecommendRequest, decode, encode, openapi


def refused(body):
    with pytest.raises(ProblemError) as caught:
        decode(body, RecommendRequest)
    return caught.value


@pytest.mark.parametrize(
    "field, reason",
    [
        ('"k": 0', ">= 1"),
        ('"k": 1e9', "int"),
        ('"customers": 1', "unknown field"),
        ('"customer": true', "int | str"),
        ('"customer": 1.5', "int | str"),
        ('"basket": [null]', "null"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field, reason):
    err = refused(b'{"requests": [{%b}]}' % field.encode())
    assert err.status == 422 and reason in err.detail


@pytest.mark.parametrize(
    "body, status",
    named(
        {
            "nothing": (b"", 400),
            "cut off": (b'{"requests"', 400),
            "not UTF-8": (b"\xff", 400),
            "not a number": (b'{"requests": [{"filters": {"max_price": NaN}}]}', 400),
            "half a surrogate": (b'{"requests": [{"customer": "\xed\xa0\x80"}]}', 400),
            "deep": (b"[" * 5000, 422),
            "deep where a list is expected": (b'{"requests":' + b"[" * 50000, 422),
            "long id": (b'{"requests": [{"customer": "%s"}]}' % (b"x" * 1000), 422),
            "a list": (b"[]", 422),
            "no requests": (b'{"requests": []}', 422),
            "large": (b" " * (MAX_BODY + 1), 413),
        }
    ),
)
def test_what_is_no_request_is_refused(body, status):
    assert refused(body).status == status


def test_a_body_may_hold_a_thousand_requests():
    body = encode({"requests": [{"k": 100}] * 1000})
    assert len(decode(body, RecommendRequest).requests) == 1000


def test_a_request_reads_as_it_was_written():
    body = encode({"requests": [{"customer": 17, "k": 3}, {"basket": [501]}]})
    assert encode(decode(body, RecommendRequest)) == body


def test_the_description_names_every_type():
    assert {"Request", "Filters", "Problem", "InferTensor"} <= set(openapi("0")["components"]["schemas"])
