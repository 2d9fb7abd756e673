"""Requests that a server's own description allows, and ones that it does not."""

from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable


def all_of_its_description_are_answered(app: FastAPI, headers: dict[str, str]) -> int:
    """Send requests of both kinds to every route; how many routes were asked. None may be a fault of the server."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]
    asked: set[str] = set()
    for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations():
        operation = found.ok()
        asked.add(operation.label)
        for mode in schemathesis.GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=10, derandomize=True, deadline=None, database=None,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def conforms(case: Any) -> None:
                case.call_and_validate(headers=headers, checks=checks)

            try:
                conforms()
            except Unsatisfiable:  # a route that takes nothing cannot be asked wrongly
                assert mode is schemathesis.GenerationMode.NEGATIVE
    app.state.service.close()
    return len(asked)
