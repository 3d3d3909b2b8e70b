"""Errors in Triton's words: few codes, and texts that keep those of HTTP."""

from typing import Any, get_args

import pytest

from latentrt.runtime.errors import InputError, SchedulerError
from latentrt.serve.http.errors import ApiError, failed
from latentrt.serve.messages import Failed, FailedKind, RefusedError, RefusedReason
from latentrt.serve.triton.errors import TritonError, triton_error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RefusedError("busy", "too much work waits", 2.1), "UNAVAILABLE", "[server_busy, 429; again after 3 s]"),
        (RefusedError("deadline", "it takes 3 s"), "UNAVAILABLE", "[deadline_exceeded, 504]"),
        (RefusedError("unknown_model", "no"), "NOT_FOUND", "[model_not_found, 404]"),
        (RefusedError("crashed", "it ended", 700), "UNAVAILABLE", "[device_restarted, 503; again after 120 s]"),
        (failed(Failed("1", "filtered", "not this")), "INVALID_ARG", "[content_policy_violation, 400]"),
        (failed(Failed("1", "out_of_memory", "full")), "UNAVAILABLE", "[out_of_memory, 503; again after 10 s]"),
        (failed(Failed("1", "non_finite", "NaN")), "INTERNAL", "[non_finite_picture, 500]"),
        (failed(Failed("1", "cancelled", "left")), "CANCELLED", "[cancelled, 409]"),
        (ApiError(499, "left", "cancelled"), "CANCELLED", "[cancelled, 499]"),
        (InputError("width=3: expected a multiple of 8"), "INVALID_ARG", "[invalid_request, 400]"),
        (SchedulerError("unknown"), "INVALID_ARG", "[invalid_request, 400]"),
    ],
)
def test_codes(error: Any, code: str, text: str) -> None:
    said = str(getattr(error, "detail", None) or getattr(error, "message", None) or error)
    assert triton_error(error) == TritonError(code, f"{said} {text}")


def test_every_refusal_and_failure_has_its_code() -> None:
    answers = [triton_error(RefusedError(reason, "why")) for reason in get_args(RefusedReason)]
    answers += [triton_error(failed(Failed("1", kind, "why"))) for kind in get_args(FailedKind)]
    assert all(answer.text.startswith("why [") and not answer.text.startswith("why [error") for answer in answers)
    assert {answer.code for answer in answers} == {"INVALID_ARG", "NOT_FOUND", "CANCELLED", "UNAVAILABLE", "INTERNAL"}


def test_what_nobody_expected_stays_in_the_log() -> None:
    told = triton_error(RuntimeError("/secret/path"))
    assert told == TritonError("INTERNAL", "the server failed; its log says more [internal_error, 500]")


def test_halves_of_surrogate_pairs_can_be_sent() -> None:
    assert triton_error(InputError("scheduler='\ud800'")).text.isascii()
