"""``POST /classify``: an image in, labels out, for people and curl."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import time
from typing import Any

import numpy as np
from starlette.requests import Request

from cutset.bundles.manifest import Manifest
from cutset.data.array_files import top_k
from cutset.data.images import Preprocessing, read_image, read_pixels
from cutset.errors import ModelError
from cutset.serve.batching import Batcher
from cutset.serve.bodies import Lease, read_body
from cutset.serve.forms import FormError, file_of
from cutset.serve.handling import compute, place
from cutset.serve.refusal import Refusal, invalid
from cutset.serve.settings import ServeSettings
from cutset.serve.stage_times import StageTimes

_NUM_READERS = 2
_MAX_LABELS = 1000


class Classifier:
    """Reads images and asks the pipeline.

    Args:
        manifest: of the bundle.
        batcher: the queue.
        settings: limits.
        times: of the stages, for answers that tell them.
    """

    def __init__(
        self, manifest: Manifest, batcher: Batcher, settings: ServeSettings, times: StageTimes
    ) -> None:
        self._manifest = manifest
        self._batcher = batcher
        self._settings = settings
        self._times = times
        # An image takes much more memory than its file, so few are read at a time.
        self._readers = concurrent.futures.ThreadPoolExecutor(
            _NUM_READERS, thread_name_prefix="cutset-images"
        )

    def close(self) -> None:
        """Ends the threads."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    async def classify(
        self, request: Request, lease: Lease, deadline_at_s: float
    ) -> dict[str, Any]:
        """The answer to an image, which goes to the pipeline as the plan has images travel.

        Raises:
            Refusal: 400 no image or a wrong parameter, 404 the bundle does not know images, 413,
                503, 504.
        """
        preprocessing = self._preprocessing()
        num_labels = _number(request, "top", default=5, most=_MAX_LABELS)
        with_stages = _number(request, "stages", default=0, most=1)
        body = await read_body(request, self._settings, lease)
        self._batcher.check_room()
        lease.take(len(body))  # the image is a copy
        image = await _image_of(request, body)
        with place(self._batcher, 1):
            started_s = time.monotonic()
            row = await self._read(image, preprocessing, deadline_at_s)
        ticket = self._batcher.submit((row[np.newaxis],), 1)
        request.scope["state"]["sequences"] = ticket.sequences
        read_s = time.monotonic() - started_s
        outputs = await compute(request, self._batcher, ticket, deadline_at_s)
        done_s = time.monotonic()
        sent_s = ticket.sent_s or ticket.arrived_s
        document: dict[str, Any] = {
            "labels": self._labels(outputs[0], num_labels),
            "seconds": {
                "read": round(read_s, 6),
                "wait": round(sent_s - ticket.arrived_s, 6),
                "pipeline": round(done_s - sent_s, 6),
            },
        }
        if with_stages:
            times = await self._times.of(ticket.sequences)
            document["stages"] = times and [
                {
                    "index": each.stage,
                    "compute_s": round(each.compute_s, 6),
                    "total_s": round(each.stop_s - each.start_s, 6),
                }
                for each in times
            ]
        return document

    def _preprocessing(self) -> Preprocessing:
        manifest = self._manifest
        if manifest.preprocessing is None or len(manifest.graph.inputs) != 1:
            raise Refusal(
                "this bundle does not say how an image becomes a row; use /v2/models/.../infer",
                status=404,
                reason="unknown",
            )
        return manifest.preprocessing

    async def _read(
        self, image: bytes | bytearray, preprocessing: Preprocessing, deadline_at_s: float
    ) -> np.ndarray:
        def read() -> np.ndarray:
            if time.monotonic() > deadline_at_s:  # it waited for a thread until nobody waits for it
                raise past
            read_it = read_pixels if self._manifest.takes_pixels else read_image
            return read_it(io.BytesIO(image), preprocessing, max_pixels=self._settings.max_pixels)

        past = Refusal(
            "the deadline passed before the image was read", status=504, reason="deadline"
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)
        except ModelError as error:
            raise invalid("image", str(error)) from error

    def _labels(self, scores: np.ndarray, num_labels: int) -> list[dict[str, Any]]:
        try:
            ranked = top_k(scores, self._manifest.labels, num_labels)[0]
        except ModelError as error:
            raise Refusal(str(error), status=404, reason="unknown") from error
        return [{"label": label, "score": score} for label, score in ranked]


def _number(request: Request, name: str, *, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    least = min(default, 1)
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and least <= int(text) <= most):
        raise invalid(f"query parameter {name}", f"is {text[:40]!r}, expected {least} to {most}")
    return int(text)


async def _image_of(request: Request, body: bytearray) -> bytes | bytearray:
    """The image: the body itself, or the first file of a form."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind.startswith("image/") or kind in ("", "application/octet-stream"):
            return bytes(body)
        raise Refusal(
            f"Content-Type: {kind[:60]!r} is no image; send image/*, application/octet-stream or "
            "multipart/form-data with the image as a file",
            status=415,
            reason="invalid",
        )

    try:
        file = await file_of(content_type, body)
    except FormError as error:
        raise invalid("body", f"is no form that can be read: {error}") from error
    if file is None:
        raise invalid("body", "the form has no file in it; send the image as one")
    return file
