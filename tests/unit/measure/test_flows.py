"""Two processes that send to each other on this host."""

from __future__ import annotations

import sys

import pytest

from cutset.errors import EngineError
from cutset.measure.flows import FlowProcesses
from talking import Talk

PAIRS = (("a", "b"), ("b", "a"))


@pytest.mark.parametrize("options", [(), ("--unsecured",)])
def test_links_carry_something_alone_and_at_once(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "cutset.measure.flows", "--listen-host", "127.0.0.1"]
    talks = {
        "a": Talk([*command, "--sends", "0", "--receives", "1", *options]),
        "b": Talk([*command, "--sends", "1", "--receives", "0", *options]),
    }
    try:
        flows = FlowProcesses(PAIRS, talks, limit_s=60)
        alone = flows.flood(PAIRS[:1], 1e8)
        assert list(alone.rates) == [("a", "b")]
        assert alone.total == alone.rates["a", "b"] > 0
        both = flows.flood(PAIRS, 1e8)
        assert set(both.rates) == set(PAIRS)
        assert 0 < both.total <= sum(both.rates.values()) * (1 + 1e-9)
        assert both.busy > 0
        flows.end()
        assert [talk.process.wait(timeout=20) for talk in talks.values()] == [0, 0]
    finally:
        for talk in talks.values():
            talk.process.kill()
            talk.process.communicate()


def test_processes_that_say_nothing_are_not_waited_for_for_ever() -> None:
    class Mute:
        def hear(self) -> list[str]:
            return []

        def tell(self, line: str) -> None:
            assert line

    flows = FlowProcesses(PAIRS, {"a": Mute(), "b": Mute()}, limit_s=0.01)
    with pytest.raises(EngineError, match="did not carry anything within 0 s"):
        flows.flood(PAIRS, 1e6)
