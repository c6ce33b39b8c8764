"""The two Flower apps, which each machine runs from its own checkout (PYTHONPATH)."""

from federation.client import app as client
from federation.server import app as server

__all__ = ["client", "server"]
