"""Configuration: one table of options, and what follows from it.

`ServerConfig` in `options` *is* the table: a field is an option, with its kind, default, bounds and help beside it.
From it follow the flags, the names in the environment, the keys of the TOML file, `oarlock config show` and the
reference page. `load` merges the four sources (flags over environment over file over defaults) and says where each
value came from; `validate` checks what concerns several options at once. Nothing here does I/O but the reading of the
named TOML file.
"""

from oarlock.config.load import Loaded, Origin, load
from oarlock.config.options import OPTIONS, Option, ServerConfig
from oarlock.config.validate import validate

__all__ = ["OPTIONS", "Loaded", "Option", "Origin", "ServerConfig", "load", "validate"]
