"""What is measured of a device, and kept for its next start."""

from pathlib import Path

from latentrt.runtime.protocols import Bucket
from latentrt.serve.dispatcher.costs import MeasuredCosts
from latentrt.serve.dispatcher.queue import Group, Weights

GROUP = Group(Weights("shapes"), Bucket(2, 16, 16, 77))


def test_kept_caps_hold_where_no_batch_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    before = MeasuredCosts(max_batch=8)
    for count, took in ((1, 10.0), (2, 12.0), (4, 30.0)):
        before.observe_call(GROUP, count, took)
    assert before.settle_cap(GROUP) == 2
    before.save(file, "this machine")
    for batch, cap in ((None, 2), (6, 6)):
        costs = MeasuredCosts(max_batch=8, batch=batch)
        assert costs.load(file, "this machine")
        assert costs.cap(GROUP) == cap
        assert costs.call(GROUP, 2) == 12.0
    costs.limit(GROUP, 3)  # memory ran out
    assert costs.cap(GROUP) == 3
