"""Whatever bytes come over a real connection: an answer below 500, and the server stays."""

from __future__ import annotations

import io
import json
import os
import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from .running import INFER, Running, ask

FUZZ = settings(
    max_examples=int(os.environ.get("CUTSET_FUZZ_EXAMPLES", "80")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 20)).convert("RGB").save(file, kind)
    return file.getvalue()


PICTURES = {kind: _picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}
TENSOR = struct.pack("<768f", *([0.5] * 768))
HEADER = json.dumps(
    {
        "inputs": [
            {
                "name": "x",
                "shape": [1, 3, 16, 16],
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(TENSOR)},
            }
        ]
    }
).encode()


@st.composite
def _damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of something right, some of them changed, cut out or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if kind == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            del data[at:]
    return bytes(data)


@pytest.fixture(autouse=True)
def _the_server_stays(server: Running) -> object:
    pids, epoch = server.session.worker_pids, server.session.epoch
    yield
    status, _, body = ask(
        server,
        path=INFER,
        body=HEADER + TENSOR,
        headers={"Inference-Header-Content-Length": str(len(HEADER))},
    )
    assert status == 200, body
    assert server.session.worker_pids == pids
    assert server.session.epoch == epoch
    # Nothing is held for those who are gone; their last bytes are just being thrown away.
    assert server.server.service.batcher.num_accepted_rows == 0


@FUZZ
@given(
    header=_damaged(HEADER) | st.binary(max_size=40),
    rest=_damaged(TENSOR) | st.just(TENSOR),
    length=st.just(None)
    | st.integers(-2, 4000)
    | st.text(st.sampled_from("0129 -+_.ex"), max_size=9),
)
@example(header=HEADER, rest=TENSOR, length=len(HEADER))
@example(header=HEADER, rest=TENSOR[:-1], length=len(HEADER))
@example(header=HEADER, rest=b"", length=len(HEADER))
def test_binary_tensors(
    server: Running, header: bytes, rest: bytes, length: int | str | None
) -> None:
    headers = {}
    if isinstance(length, int):
        headers["Inference-Header-Content-Length"] = str(length)
    elif isinstance(length, str):
        headers["Inference-Header-Content-Length"] = length
    else:
        headers["Inference-Header-Content-Length"] = str(len(header))
    status, _, body = ask(server, path=INFER, body=header + rest, headers=headers)
    assert status in (200, 400), body
    if status == 400:
        assert list(json.loads(body)) == ["error"]


@FUZZ
@given(
    body=_damaged(
        json.dumps(
            {
                "inputs": [
                    {"name": "x", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": [0.5] * 768}
                ]
            }
        ).encode()
    )
)
def test_json(server: Running, body: bytes) -> None:
    status, _, answer = ask(server, path=INFER, body=body)
    assert status in (200, 400), answer


@FUZZ
@given(data=st.data(), kind=st.sampled_from(sorted(PICTURES)), form=st.booleans())
def test_images(server: Running, data: st.DataObject, kind: str, form: bool) -> None:
    image = data.draw(_damaged(PICTURES[kind]))
    headers = {}
    if form:
        head = b'--cut\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n'
        image = data.draw(_damaged(head)) + image + b"\r\n--cut--\r\n"
        headers["Content-Type"] = "multipart/form-data; boundary=cut"
    status, _, answer = ask(server, path="/classify", body=image, headers=headers)
    assert status in (200, 400), answer


@pytest.mark.parametrize("kind", sorted(PICTURES))
def test_pictures_that_are_right(server: Running, kind: str) -> None:
    status, _, answer = ask(server, path="/classify?top=3", body=PICTURES[kind])
    assert status == 200
    assert len(json.loads(answer)["labels"]) == 3
