"""The OpenAPI document says what the server does: schemathesis tries it out."""

from __future__ import annotations

import collections

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from .running import Running

OPERATIONS = (
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /status",
    "GET /metrics",
    "POST /classify",
    "GET /v2/models/{model}",
    "GET /v2/models/{model}/ready",
    "POST /v2/models/{model}/infer",
    "GET /v2/models/{model}/versions/{version}",
    "GET /v2/models/{model}/versions/{version}/ready",
    "POST /v2/models/{model}/versions/{version}/infer",
)


@pytest.fixture(scope="module")
def operations(server: Running) -> dict[str, schemathesis.APIOperation]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = [each.ok() for each in schema.get_all_operations()]
    return {f"{each.method.upper()} {each.path}": each for each in found}


def test_every_operation_is_tried(operations: dict[str, schemathesis.APIOperation]) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_server_keeps_its_word(
    operations: dict[str, schemathesis.APIOperation], operation: str, mode: GenerationMode
) -> None:
    """No 5xx, and no answer that the document does not describe."""
    if mode is GenerationMode.NEGATIVE and operation.startswith("GET") and "{" not in operation:
        return  # takes nothing that could be wrong
    # JSON Schema cannot say that data has as many values as its shape, nor that bytes are a
    # picture: what it lets through may still be refused.
    unsayable = [positive_data_acceptance] if operation.startswith("POST") else []
    statuses: collections.Counter[int] = collections.Counter()

    @seed(7)
    @settings(
        max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operations[operation].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        response = case.call()
        case.validate_response(response, excluded_checks=unsayable)
        assert response.status_code < 500
        statuses[response.status_code] += 1

    ask()
    if mode is GenerationMode.POSITIVE and operation.startswith("GET"):
        assert set(statuses) == {200}
