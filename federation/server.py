"""The Flower app of the server: it carries the messages between devices, and counts their bytes."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from data.tables import load_table
from federation.device import read_flags
from federation.flags import parse_server
from federation.messages import from_content, size_of, to_content
from federation.parts import Parts, shown, values_in
from federation.rounds import POLL_SECONDS, Failure, Reply, Server
from federation.state import State
from pipeline.fleet import paths_of
from utils import logs
from utils.errors import UserError
from utils.folders import alone_in

app = ServerApp()

# Flower's own texts speak of its database.
_ERRORS = {
    ErrorCode.MESSAGE_UNAVAILABLE: "no answer in time",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "no answer in time",
    ErrorCode.NODE_UNAVAILABLE: "it has gone",
    ErrorCode.CLIENT_APP_CRASHED: "its app has crashed",
}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Find every target a backbone, and have it trained."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request otherwise
    args = parse_server(read_flags(Path(str(context.run_config["flags"]))))
    logs.to_terminal()
    table = load_table(args.dataset_config, data_root=args.data_root)
    paths = paths_of(args)
    results = paths.federation_file(table.name)
    # A server whose SuperLink was killed may take a moment to end.
    with alone_in(results.parent, part=results.name), logs.to_file(paths.stage_log(table.name, "federated")):
        state = State.read(results, overwrite=args.overwrite)
        post = FlowerPost(grid, max_bytes=args.max_bytes, state=state)
        Server(post, table=table, args=args, state=state).run()


class FlowerPost:
    """Carries messages through Flower, and counts their bytes.

    Args:
        max_bytes: an answer that is larger is refused.
    """

    def __init__(self, grid: Grid, *, max_bytes: int, state: State) -> None:
        self.grid = grid
        self.max_bytes = max_bytes
        self.state = state
        self._lock = threading.Lock()

    def nodes(self) -> list[int]:
        """The devices that are connected."""
        with self._lock:
            return sorted(self.grid.get_node_ids())

    def ask(self, requests: Mapping[int, Parts], kind: str, *, deadline: float | None) -> dict[int, Reply]:
        """See `rounds.Post`."""
        ttl = {} if deadline is None else {"ttl": deadline}
        messages = [
            Message(to_content(parts), dst_node_id=node, message_type=kind, **ttl)
            for node, parts in requests.items()
        ]
        for message in messages:
            self.state.count(kind, sent=size_of(message.content))
        with self._lock:
            ids = list(self.grid.push_messages(messages))
        waiting = {message_id: node for message_id, node in zip(ids, requests, strict=True) if message_id}
        replies: dict[int, Reply] = {node: Failure("it cannot be reached") for node in requests}
        replies |= {node: Failure("no answer in time") for node in waiting.values()}
        end = None if deadline is None else time.monotonic() + deadline
        while waiting:
            with self._lock:
                arrived = list(self.grid.pull_messages(list(waiting)))
            for message in arrived:
                # A second answer to the same message finds nobody waiting.
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node is not None:
                    replies[node] = self._read(message, kind=kind)
            if not waiting or (end is not None and time.monotonic() > end):
                break
            time.sleep(POLL_SECONDS)
        return replies

    def _read(self, message: Message, *, kind: str) -> Reply:
        if message.has_error():
            return Failure(_ERRORS.get(message.error.code, shown(message.error.reason)))
        size = size_of(message.content)
        self.state.count(kind, received=size)
        if size > self.max_bytes:
            return Failure(f"its answer has {size:,} bytes, more than the limit of {self.max_bytes:,}")
        try:
            parts = from_content(message.content)
            if "error" in parts:
                return Failure(shown(values_in(parts, "error", kinds={"reason": str})["reason"]))
        except UserError as error:
            return Failure(str(error))
        return parts
