# SPDX-License-Identifier: Apache-2.0
"""Hostile bodies against a running server, made from the OpenAPI document that it serves:

    python -m benchmarks.serving_fuzz http://127.0.0.1:8000 --examples 500

Every answer must be one that the document has: its status, its type and its schema, and never a 5xx for a body alone.
"""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["campaign"]

#: Answers about the server's own state, not about the body.
_BUSY = (429, 503)


def campaign(address: str, examples: int, seed: int = 0) -> list[str]:
    """Failures that schemathesis finds, one line each.

    Args:
        address: of the server.
        examples: bodies for each path.
        seed: equal ones make equal bodies.
    """
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    schemathesis.checks.load_all_checks()
    checks = schemathesis.checks.CHECKS.get_by_names(
        ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    )
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    failures: list[str] = []
    for operation in schema.get_all_operations():
        good = operation.ok()

        @seeded(seed)
        @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=good.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body["max_tokens"] = case.body["max_completion_tokens"] = case.body["max_output_tokens"] = 2
            answer = case.call(timeout=60)
            if answer.status_code not in _BUSY:
                case.validate_response(answer, checks=checks)

        try:
            check()
        except Exception as error:
            failures.append(f"{good.label}: {str(error)[:1500]}")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failures = campaign(given.address, given.examples, given.seed)
    print("\n\n".join(failures) or f"nothing found with {given.examples} bodies for each path")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
