"""Models to records and back, and to JSON text (format 1, ``docs/format.md``).

A record is a JSON object with the seed's key names; absent values are left out. Reading is strict about types, where
cattrs by default would turn ``7`` into ``"7"`` silently, and lenient about keys: null counts as absent, and ``patched``
keeps unknown keys when a record is rewritten.
"""

from threadloom.codec.json import MOST_LEVELS, Record, dump, dump_exactly, dump_line, load, load_exactly, patched
from threadloom.codec.records import decode, from_record, to_record

__all__ = [
    "MOST_LEVELS",
    "Record",
    "decode",
    "dump",
    "dump_exactly",
    "dump_line",
    "from_record",
    "load",
    "load_exactly",
    "patched",
    "to_record",
]
