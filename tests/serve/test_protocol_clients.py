"""The server as Triton's own client sees it, unmodified, sync and async."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from cutset.bundles.write.export import export_bundle
from cutset.capture.torch_export import capture_model
from distributed.bundles import SmallNet, hand_plan, whole_model

from .running import Running, TwoInTwoOut, serving


@pytest.fixture
def client(server: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=4) as each:
        yield each


def _input(rows: np.ndarray, *, binary: bool, name: str = "x") -> triton.InferInput:
    given = triton.InferInput(name, list(rows.shape), "FP32")
    given.set_data_from_numpy(rows, binary_data=binary)
    return given


def _rows(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_metadata_and_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", "1")
    assert not client.is_model_ready("another")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    expected = {
        "name": "small",
        "versions": ["1"],
        "platform": "cutset",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 16, 16]}],
        "outputs": [{"name": "0", "datatype": "FP32", "shape": [-1, 10]}],
    }
    assert client.get_model_metadata("small") == expected
    assert client.get_model_metadata("small", "1") == expected


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3, 4, 9])
def test_infer_equals_the_model(
    client: triton.InferenceServerClient,
    model: SmallNet,
    num_rows: int,
    binary_in: bool,
    binary_out: bool,
) -> None:
    rows = _rows(num_rows)
    result = client.infer(
        "small",
        [_input(rows.numpy(), binary=binary_in)],
        outputs=[triton.InferRequestedOutput("0", binary_data=binary_out)],
        request_id="seven",
    )
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_version"] == "1"
    # One client at a time: the micro-batches are those of the whole model.
    assert torch.equal(torch.tensor(result.as_numpy("0")), whole_model(model, rows, 4))


def test_outputs_not_named_come_all_and_in_binary(
    client: triton.InferenceServerClient, model: SmallNet
) -> None:
    rows = _rows(2)
    result = client.infer("small", [_input(rows.numpy(), binary=True)])
    assert result.get_output("0")["parameters"] == {"binary_data_size": 80}
    assert torch.equal(torch.tensor(result.as_numpy("0")), whole_model(model, rows, 4))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(
    client: triton.InferenceServerClient, model: SmallNet, algorithm: str
) -> None:
    rows = _rows(2)
    result = client.infer(
        "small",
        [_input(rows.numpy(), binary=True)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert torch.equal(torch.tensor(result.as_numpy("0")), whole_model(model, rows, 4))


@pytest.mark.parametrize(
    ("rows", "name", "requested", "field"),
    [
        (np.zeros((1, 3, 16, 15), np.float32), "x", "0", "$.inputs[0].shape: is [1, 3, 16, 15]"),
        (np.zeros((3, 16, 16), np.float32), "x", "0", "$.inputs[0].shape: is [3, 16, 16]"),
        (np.zeros((0, 3, 16, 16), np.float32), "x", "0", "$.inputs[0].shape: is [0, 3, 16, 16]"),
        (np.zeros((1, 3, 16, 16), np.float32), "y", "0", "$.inputs[0].name: 'y': the model takes"),
        (np.zeros((1, 3, 16, 16), np.float32), "x", "9", "$.outputs[0].name: the model has no"),
        (np.full((1, 3, 16, 16), np.nan, np.float32), "x", "0", "$.inputs[0]: has NaN"),
    ],
)
def test_errors_name_the_field(
    client: triton.InferenceServerClient,
    rows: np.ndarray,
    name: str,
    requested: str,
    field: str,
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(
            "small",
            [_input(rows, binary=True, name=name)],
            outputs=[triton.InferRequestedOutput(requested)],
        )
    assert caught.value.status() == "400"
    assert field in caught.value.message()


def test_a_wrong_datatype_and_an_unknown_model(client: triton.InferenceServerClient) -> None:
    given = triton.InferInput("x", [1, 3, 16, 16], "FP64")
    given.set_data_from_numpy(np.zeros((1, 3, 16, 16)))
    with pytest.raises(InferenceServerException, match="datatype: is 'FP64', expected 'FP32'"):
        client.infer("small", [given])
    with pytest.raises(InferenceServerException, match="there is no model 'large'") as caught:
        client.infer("large", [_input(_rows(1).numpy(), binary=True)])
    assert caught.value.status() == "404"


def test_many_threads_get_their_own_rows(server: Running, model: SmallNet) -> None:
    """Rows of all of them share micro-batches; each answer is that of its own rows."""

    def ask(seed: int) -> tuple[int, str, torch.Tensor]:
        rows = _rows(1 + seed % 5, seed)
        with triton.InferenceServerClient(server.address) as own:
            result = own.infer(
                "small", [_input(rows.numpy(), binary=bool(seed % 2))], request_id=str(seed)
            )
        return seed, result.get_response()["id"], torch.tensor(result.as_numpy("0"))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for seed, request_id, answer in pool.map(ask, range(48)):
            assert request_id == str(seed)
            expected = whole_model(model, _rows(1 + seed % 5, seed), 4)
            # Other rows in the micro-batch may change the last bits, not more.
            assert torch.allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_async_client(server: Running, model: SmallNet) -> None:
    async def ask() -> list[torch.Tensor]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("small")
            metadata = await client.get_model_metadata("small")
            assert metadata["inputs"][0]["shape"] == [-1, 3, 16, 16]
            with pytest.raises(InferenceServerException, match="there is no model"):
                await client.infer("large", [_input(_rows(1).numpy(), binary=True)])
            results = await asyncio.gather(
                *(
                    client.infer("small", [_input(_rows(2, seed).numpy(), binary=seed % 2 == 0)])
                    for seed in range(12)
                )
            )
            return [torch.tensor(result.as_numpy("0")) for result in results]

    for seed, answer in enumerate(asyncio.run(ask())):
        expected = whole_model(model, _rows(2, seed), 4)
        assert torch.allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_several_inputs_and_outputs_of_several_types(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = TwoInTwoOut().eval()
    example = (torch.randn(2, 4), torch.randint(0, 9, (2, 4)))
    captured = capture_model(model, example)
    middle = next(
        index + 1 for index, each in enumerate(captured.graph.operations) if "relu" in each.name
    )
    path = export_bundle(
        model, hand_plan(captured, (middle,), 2), tmp_path / "two.cutset", captured=captured
    )
    x, ids = torch.randn(5, 4), torch.randint(0, 9, (5, 4))
    with serving(path) as running, triton.InferenceServerClient(running.address) as client:
        first = triton.InferInput("ids", [5, 4], "INT64")
        first.set_data_from_numpy(ids.numpy(), binary_data=False)
        result = client.infer("small", [first, _input(x.numpy(), binary=True)])
        wanted = [triton.InferRequestedOutput("best", binary_data=False)]
        only = client.infer("small", [first, _input(x.numpy(), binary=True)], outputs=wanted)
    with torch.inference_mode():
        expected = model(x, ids)
    assert torch.allclose(torch.tensor(result.as_numpy("scores")), expected["scores"])
    assert result.as_numpy("best").tolist() == expected["best"].tolist()
    assert only.as_numpy("best").tolist() == expected["best"].tolist()
    assert only.as_numpy("scores") is None
