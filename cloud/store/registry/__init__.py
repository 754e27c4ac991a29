"""The registry on record: who was where, and when.

Files (``files``) and exchanges (``exchange``) become a new history (``history``, ``plan``). The difference between it
and the one on record is written (``record``), with everything that must be derived again because of it
(``consequences``).
"""

from cloud.store.registry.exchange import exchange
from cloud.store.registry.export import export_registry
from cloud.store.registry.files import Problem, Registry, parse_instant, read_registry
from cloud.store.registry.history import History, Registers, load_history
from cloud.store.registry.plan import RegistryError
from cloud.store.registry.record import Saved, save_registry
from cloud.store.registry.tables import known_names

__all__ = (
    "History",
    "Problem",
    "Registers",
    "Registry",
    "RegistryError",
    "Saved",
    "exchange",
    "export_registry",
    "known_names",
    "load_history",
    "parse_instant",
    "read_registry",
    "save_registry",
)
