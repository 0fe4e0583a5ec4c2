"""The OpenAPI description is what the service does: schemathesis makes up requests from it, good ones and bad ones."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from serving_process import POLICY

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
SETTINGS = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_service_does_what_its_description_says(service, mode):
    described = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    seen = set()
    for found in described.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue

        @SETTINGS
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case):
            if mode is GenerationMode.POSITIVE and case.path in ("/v1/chat/completions", "/v1/responses"):
                case.body["model"] = POLICY.name  # made-up models are not served
            seen.add((case.path, case.call_and_validate(checks=CHECKS, timeout=30).status_code))

        holds()
    assert ("/v1/route", 200 if mode is GenerationMode.POSITIVE else 422) in seen
