from __future__ import annotations

import pytest

from cutset.serve.bodies import Budget
from cutset.serve.refusal import Refusal


def test_requests_share_a_budget() -> None:
    budget = Budget(100)
    first, second = budget.lease(), budget.lease()
    first.take(60)
    with pytest.raises(Refusal, match="as many bytes of requests as it may") as caught:
        second.take(41)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
    second.take(40)
    assert budget.num_taken_bytes == 100
    first.release()
    first.release()
    assert budget.num_taken_bytes == 40
    second.take(60)
    with pytest.raises(Refusal, match="need about 101 bytes of memory, at most 100") as caught:
        second.take(1)
    assert caught.value.status == 413
    second.release()
    assert budget.num_taken_bytes == 0
