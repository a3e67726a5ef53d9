"""Manifests survive the way to disk and back, and damage to bundles ends in a `BundleError`."""

from __future__ import annotations

import contextlib
import itertools
import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutset.bundles.file_entries import FileEntry
from cutset.bundles.manifest import (
    BUNDLE_FORMAT,
    Manifest,
    PartEntry,
    StageEntry,
    decode_manifest,
    encode_manifest,
)
from cutset.bundles.open import open_bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.capture.setting_values import TORCH_SETTINGS
from cutset.data.images import Preprocessing
from cutset.errors import BundleError, ManifestError
from cutset.graph.ir import Graph, ModuleCall, Operation, Parameter
from cutset.planning.plan import PLAN_FORMAT, Plan, StagePlan
from cutset.tensors import DTYPE_BYTES, TensorSpec
from distributed.bundles import write_bundle
from hostile import edit_model_json, relist
from models_of_trouble import residual_net

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
counts = st.integers(0, 1 << 60)
numbers = st.floats(0, 1e300)
dims = st.one_of(st.integers(0, 9), st.just("batch"), st.integers(1, 9).map(lambda k: f"batch*{k}"))
files = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)

SETTINGS = {name: st.sampled_from(values) for name, values in TORCH_SETTINGS.items()}

pixels = st.integers(1, 999)
# Such as float32 has: the arithmetic on pixels is done in it.
middling = st.floats(-1e38, 1e38)
thirds = st.tuples(middling, middling, middling)
positive = st.floats(0.1, 9.0)
positive_thirds = st.tuples(positive, positive, positive)
preprocessings = st.builds(
    Preprocessing,
    resize=pixels | st.tuples(pixels, pixels),
    crop=st.tuples(pixels, pixels),
    interpolation=st.just("bilinear"),
    mean=thirds,
    std=positive_thirds,
)


@st.composite
def specs(draw: st.DrawFn, name: str) -> TensorSpec:
    return TensorSpec(
        name=name,
        shape=tuple(draw(st.lists(dims, max_size=3))),
        dtype=draw(st.sampled_from(sorted(DTYPE_BYTES))),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """A chain of operations, each reading its predecessor, in one to three stages."""
    num_stages = draw(st.integers(1, 3))
    labels = draw(st.lists(names, min_size=num_stages + 1, max_size=num_stages + 1, unique=True))
    chain = [draw(specs(label)) for label in labels]
    weights = draw(st.lists(names, max_size=3, unique=True))
    operations = tuple(
        Operation(
            name=after.name,
            target=draw(names),
            inputs=(before.name,),
            outputs=(after,),
            parameters=tuple(weights),
            modules=(ModuleCall(path="", call=draw(counts), class_name=draw(names)),),
            flops=draw(counts),
            source=draw(names),
        )
        for before, after in itertools.pairwise(chain)
    )
    graph = Graph(
        model_class=draw(names),
        inputs=(chain[0],),
        operations=operations,
        outputs=(chain[-1].name,),
        parameters=tuple(
            Parameter(name=w, kind="buffer", num_elements=draw(counts), num_bytes=draw(counts))
            for w in weights
        ),
    )
    listed = [f"stage-{index}/{draw(files)}" for index in range(num_stages)] + ["reference.st"]
    plan = draw(plans(num_stages))
    return Manifest(
        format=BUNDLE_FORMAT,
        created_by=draw(st.dictionaries(names, names, max_size=2)),
        model=draw(names),
        weights=draw(names),
        keep=tuple(draw(st.lists(names, max_size=2))),
        divide=(),
        max_tensors=draw(st.integers(1, 1 << 40)),
        graph=graph,
        stages=tuple(
            StageEntry(
                index=index,
                operations=(operations[index].name,),
                units=tuple(draw(st.lists(names, max_size=2))),
                parameters=tuple(weights),
                inputs=(chain[index],),
                outputs=(chain[index + 1],),
                program=listed[index],
                model=None,
                model_missing=draw(names),
                weight_bytes=draw(counts),
                peak_activation_bytes=draw(counts),
                flops=draw(counts),
            )
            for index in range(num_stages)
        ),
        outputs=(chain[-1],),
        output_names=(draw(names),),
        shared_parameters=tuple(weights),
        unused_parameters=(),
        plan=plan,
        preprocessing=draw(st.none() | preprocessings),
        labels=draw(labels_for(chain[-1])),
        reference=listed[-1],
        num_threads=draw(st.integers(1, 1024)),
        files=tuple(
            FileEntry(path=path, num_bytes=draw(counts), sha256=f"{draw(counts):064x}")
            for path in listed
        ),
        part=draw(
            st.none()
            | st.builds(PartEntry, path=names, work_share=st.floats(0.0, 1.0, exclude_min=True))
        ),
        micro_batch_only=draw(st.none() | st.just(plan.micro_batch)),
        torch_settings=draw(st.none() | st.fixed_dictionaries({}, optional=SETTINGS)),
    )


def labels_for(output: TensorSpec) -> st.SearchStrategy[tuple[str, ...] | None]:
    length = output.shape[-1] if output.shape else None
    if not isinstance(length, int) or length > 100:
        return st.none()
    return st.none() | st.lists(names, min_size=length, max_size=length).map(tuple)


@st.composite
def plans(draw: st.DrawFn, num_stages: int) -> Plan:
    return Plan(
        format=PLAN_FORMAT,
        objective="throughput",
        micro_batch=draw(st.integers(1, 64)),
        stages=tuple(
            StagePlan(
                index=index,
                first=draw(names),
                last=draw(names),
                start=index,
                stop=index + 1,
                units=(),
                device=draw(names),
                compute_s=draw(numbers),
                send_s=draw(numbers),
                weight_bytes=draw(counts),
                memory_bytes=draw(counts),
                output_bytes_per_sample=draw(counts),
            )
            for index in range(num_stages)
        ),
        period_s=draw(numbers),
        latency_s=draw(numbers),
        bound_s=draw(numbers),
        bound_by="exhaustion",
        gap=draw(numbers),
    )


@given(manifests())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert encode_manifest(decode_manifest(data)) == data


@given(manifests(), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_unknown_key_anywhere_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    document = json.loads(encode_manifest(manifest))
    free = (document["created_by"], document["torch_settings"])  # their keys are data
    places: list[dict[str, Any]] = []
    pending: list[Any] = [document]
    while pending:
        item = pending.pop()
        if isinstance(item, dict) and not any(item is each for each in free):
            places.append(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    data.draw(st.sampled_from(places))["a key that no version has"] = None
    with pytest.raises(ManifestError, match="unknown field"):
        decode_manifest(json.dumps(document).encode())


@given(manifests(), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_damage_is_a_bundle_error_or_harmless(manifest: Manifest, data: st.DataObject) -> None:
    text = bytearray(encode_manifest(manifest))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        decode_manifest(bytes(text))


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    directory = tmp_path_factory.mktemp("bundles") / "small.cutset"
    return write_bundle(residual_net(), (torch.randn(3, 3, 8, 8),), (4,), directory)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_damage_to_a_program_is_a_bundle_error_or_harmless(
    small_bundle: Path, data: st.DataObject
) -> None:
    file = small_bundle / "stage-0/program.pt2"
    original = file.read_bytes()
    damaged = bytearray(original)
    start = data.draw(st.integers(0, len(damaged) - 1))
    damaged[start : start + data.draw(st.integers(1, 8))] = data.draw(st.binary(max_size=12))
    try:
        file.write_bytes(bytes(damaged))
        relist(small_bundle)
        with contextlib.suppress(BundleError):
            load_program(open_bundle(small_bundle, stages=(0,)), 0)
    finally:
        file.write_bytes(original)


def _values(document: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a JSON document."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        item = pending.pop()
        if isinstance(item, (dict, list)):
            for key in list(item) if isinstance(item, dict) else range(len(item)):
                found.append((item, key))
                pending.append(item[key])
    return found


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_other_value_in_model_json_is_a_bundle_error_or_harmless(
    small_bundle: Path, data: st.DataObject
) -> None:
    file = small_bundle / "stage-0/program.pt2"
    original = file.read_bytes()
    evil = st.sampled_from(
        [None, -1, 1 << 70, 1e400, "", "os.system('x')", [], {}, [{}], True, {"as_int": 1}]
    )

    def change(document: dict[str, Any]) -> None:
        container, key = data.draw(st.sampled_from(_values(document)))
        container[key] = data.draw(evil)

    try:
        edit_model_json(small_bundle, change, program="stage-0/program.pt2")
        with contextlib.suppress(BundleError):
            load_program(open_bundle(small_bundle, stages=(0,)), 0)
    finally:
        file.write_bytes(original)


def test_a_deep_document_ends_in_an_error_too() -> None:
    with pytest.raises(ManifestError):
        decode_manifest(b'{"format": "cutset-bundle/1", "graph": ' + b"[" * 100_000)
