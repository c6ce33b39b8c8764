"""What the server keeps on disk, so that it can be stopped at any time: finished targets, and bytes."""

import copy
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import json_text, read_json, write_atomically

_REMEDY = "delete it to start a new one"


class State:
    """The file of a federation's results. Threads may share it.

    Attributes:
        targets: target's name → "row", "backbone", "refused" and "settings"; "failed" with the reason
            why it has no row, or kept an earlier one.
        messages: kind of message → its number and the bytes sent to and received from devices, in all runs
            with the settings `counted_for`.
        counted_for: device's task → its settings.
    """

    def __init__(self, path: Path, *, targets: dict[str, dict], messages: dict, counted_for: dict) -> None:
        self.path = path
        self.targets = targets
        self.messages = messages
        self.counted_for = counted_for
        self._new: dict[str, dict] = {}  # of this run
        self._lock = threading.Lock()

    @classmethod
    def read(cls, path: Path, *, overwrite: bool = False) -> "State":
        """The state in `path`; a new one if there is none.

        Args:
            overwrite: start a new one anyway.

        Raises:
            UserError: if the file is damaged.
        """
        found: dict[str, Any] = {}
        if path.exists() and not overwrite:
            found = read_json(path, remedy=_REMEDY)
        parts = [found.get(name, {}) for name in ("targets", "messages", "counted_for")]
        for entries in parts:
            if not isinstance(entries, dict) or not all(
                isinstance(entry, dict) for entry in entries.values()
            ):
                raise UserError(f"{path} is not what a server wrote: {_REMEDY}")
        targets, messages, counted_for = parts
        return cls(path, targets=targets, messages=messages, counted_for=counted_for)

    def count_for(self, settings: Mapping[str, Mapping]) -> None:
        """Forget earlier runs' bytes if one of the devices, by task, had other settings in them."""
        with self._lock:
            before = self.counted_for
            if any(before.get(name, said) != said for name, said in settings.items()):
                self.messages, before = copy.deepcopy(self._new), {}
            self.counted_for = before | {name: dict(said) for name, said in settings.items()}

    def is_finished(self, target: str, settings: Mapping) -> bool:
        """Whether the target's row was made with these settings."""
        entry = self.targets.get(target, {})
        return "row" in entry and entry.get("settings") == dict(settings)

    def finish(
        self, target: str, *, row: dict, backbone: str | None, refused: Sequence[str], settings: Mapping
    ) -> None:
        """Keep a target's row."""
        entry = {"row": row, "backbone": backbone, "refused": list(refused), "settings": dict(settings)}
        self._write(target, entry)

    def fail(self, target: str, reason: str) -> None:
        """Keep why a target has no new row; an earlier one stays."""
        self._write(target, {**self.targets.get(target, {}), "failed": reason})

    def confirm(self, target: str) -> None:
        """Keep the row that a target has: it needs no new one."""
        entry = self.targets[target]
        if "failed" in entry:
            self._write(target, {name: value for name, value in entry.items() if name != "failed"})

    def count(self, kind: str, *, sent: int = 0, received: int = 0) -> None:
        """Count a message that is sent, or the bytes of an answer."""
        with self._lock:
            for counts in (self.messages, self._new):
                entry = counts.setdefault(kind, {"messages": 0, "sent": 0, "received": 0})
                entry["messages"] += sent > 0  # even an empty message has bytes
                entry["sent"] += sent
                entry["received"] += received

    def _write(self, target: str, entry: dict) -> None:
        with self._lock:
            self.targets[target] = entry
            names = ("targets", "messages", "counted_for")
            write_atomically(self.path, json_text({name: getattr(self, name) for name in names}))
