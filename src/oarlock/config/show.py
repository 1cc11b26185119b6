"""Writing a configuration out: as a table for people, as JSON for programs."""

from __future__ import annotations

import json

from oarlock.config.load import Loaded
from oarlock.config.options import OPTIONS, ServerConfig


def values(config: ServerConfig) -> dict[str, str]:
    """Every option's value as the user would write it, by name."""
    return {option.name: option.kind.show(getattr(config, option.field)) for option in OPTIONS}


def table(loaded: Loaded, config: ServerConfig, *, origin: bool) -> str:
    """One line for each option: `name = value`, with `# where it came from` when `origin` is set."""
    rows = list(values(config).items())
    width = max(len(name) for name, _ in rows)
    shown = [f"{name:<{width}} = {value}".rstrip() for name, value in rows]
    if origin:
        column = min(max(len(line) for line in shown), 100)
        sources = [str(loaded.sources[option.field]) for option in OPTIONS]
        shown = [f"{line:<{column}}  # {source}" for line, source in zip(shown, sources, strict=True)]
    return "\n".join(shown)


def as_json(loaded: Loaded, config: ServerConfig, *, origin: bool) -> str:
    """An object from name to value, or to `{"value", "origin", "detail"}` when `origin` is set."""
    document: dict[str, object] = {}
    for option in OPTIONS:
        value = getattr(config, option.field)
        if option.field == "initial_cluster":
            value = {name: list(urls) for name, urls in value}
        source = loaded.sources[option.field]
        document[option.name] = (
            {"value": value, "origin": source.origin.value, "detail": source.detail} if origin else value
        )
    return json.dumps(document, indent=2)
