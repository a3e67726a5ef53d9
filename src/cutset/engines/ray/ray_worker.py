"""A worker on a node of a Ray cluster, as the session sees it."""

from __future__ import annotations

import msgspec

from cutset.engines.control import EVENTS
from cutset.engines.protocol import Command, Exited
from cutset.engines.ray.host_calls import Host
from cutset.engines.remote_worker import RemoteWorker


class RayWorker(RemoteWorker[Host]):
    """The child of a `StageHost`; see `cutset.engines.remote_worker.RemoteWorker`."""

    def _tell(self, host: Host, command: Command) -> None:
        host.tell("command", msgspec.json.encode(command))

    def _serve(self, host: Host) -> None:
        host.ask("start_worker", self._engine.num_threads, host.address)
        self._deliver(host)
        while not self._ended.is_set():
            for line in host.ask("next_events", group="events"):
                event = EVENTS.decode(line)
                if isinstance(event, Exited):
                    self.end(event, keep_host=True)
                else:
                    self._pass_on(event)
