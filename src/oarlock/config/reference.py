"""The reference page of the configuration, made from the table. `python -m oarlock.config.reference PATH` writes it."""

from __future__ import annotations

import sys

from oarlock.config.options import CONFIG_FILE, ETCD_ONLY, OPTIONS, SECTIONS, Option

_HEAD = """\
# Configuration

<!-- Made from the table in src/oarlock/config/options.py by `make bless`; edit it there. -->

The options of `oarlock serve`. Each can be given in three ways, the strongest first:

1. as a flag: `--heartbeat-interval=50`, `--heartbeat-interval 50` or, as Go programs allow, `-heartbeat-interval 50`;
2. in the environment: `OARLOCK_HEARTBEAT_INTERVAL=50`. Options of etcd are also read from `ETCD_...`; giving both names
   different values is an error. An empty variable counts as not given;
3. in the TOML file that `--config-file` names: `heartbeat-interval = 50`.

Unlike etcd, a file does not switch off flags and environment. `oarlock config show --origin` prints every value with
the place it came from. What is unknown (a flag, a key, a variable `OARLOCK_...`) is an error that names the nearest
known one.

Booleans are `true` or `false` (a flag alone means `true`). Durations carry their unit (`500ms`, `10s`, `1m30s`);
options in milliseconds take a bare number too. Sizes are bytes, or carry `KiB`, `MiB` or `GiB`. URLs are `http` or
`https` with a port and no path. Options marked *etcd* mean what etcd's flag of that name means.
"""

_TAIL = """\
## Rules between options

- `election-timeout` is at least five times `heartbeat-interval`, and at most 50000.
- `listen-client-urls` needs `advertise-client-urls`; a changed `listen-peer-urls` needs `initial-advertise-peer-urls`.
- `initial-cluster` contains this member's `name` with exactly its `initial-advertise-peer-urls`, and no URL twice.
- An address others cannot reach (`0.0.0.0`, `[::]`) is good for listening and refused for advertising.
- `https` needs a certificate and its key; a certificate needs `https`; `client-cert-auth` needs an authority.
- Between members `https` always goes both ways: it needs `peer-trusted-ca-file`.

## Flags of etcd without a counterpart

These are accepted with the value that asks for nothing, so that existing units and manifests work. With any other value
the server refuses to start rather than run without what was asked for.

| flag | accepted values |
| --- | --- |
"""


def _row(option: Option) -> str:
    default = option.default_text or f"`{option.kind.show(option.default)}`"
    if default == "``":
        default = "none"
    allowed = ", ".join(f"`{choice}`" for choice in option.choices) or option.range_text() or option.kind.name
    origin = " *etcd*" if option.etcd else ""
    environment = f"`{option.environment}`"
    return f"| `{option.flag}`{origin} | {allowed} | {default} | {option.help} <br> {environment} |"


def render() -> str:
    """The whole page."""
    parts = [_HEAD]
    for section, what in SECTIONS.items():
        options = [option for option in OPTIONS if option.section == section]
        if section == "process":
            options.insert(0, CONFIG_FILE)
        parts.append(f"## {section.capitalize()}: {what}\n")
        parts.append("| option | values | default | meaning |\n| --- | --- | --- | --- |")
        parts.append("\n".join(_row(option) for option in options) + "\n")
    tail = _TAIL + "\n".join(
        f"| `--{name}` | {', '.join(f'`{value}`' if value else 'empty' for value in accepted)} |"
        for name, accepted in sorted(ETCD_ONLY.items())
    )
    return "\n".join([*parts, tail]) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m oarlock.config.reference PATH")
    with open(sys.argv[1], "w", encoding="utf-8") as page:
        page.write(render())
