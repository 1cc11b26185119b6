"""The table of everything that can be typed. Parser, help, completion and the reference page are made from it.

A verb's work is the function of its name in the module named here, which is imported when the verb runs.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from oarlock.ctl.flags import Flag

ALL: Final = ("simple", "json", "fields", "protobuf")
ROWS: Final = ("simple", "json", "fields", "table")
MEMBERS: Final = (*ALL, "table")
NO_FIELDS: Final = ("simple", "json", "protobuf")
FORMATS: Final = ("simple", "fields", "json", "protobuf", "table")


class Verb(NamedTuple):
    """One verb: its words, what follows them, one line of help, where its work is, its flags, its formats (none: it
    prints the same whatever --write-out says), and what help says further."""

    words: tuple[str, ...]
    usage: str
    summary: str
    module: str
    flags: tuple[Flag, ...] = ()
    formats: tuple[str, ...] = ()
    details: str = ""

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def function(self) -> str:
        name = "_".join(self.words).replace("-", "_")
        return "del_" if name == "del" else name


def _bool(name: str, help: str, short: str = "", default: bool = False) -> Flag:
    return Flag(name, "bool", default, help, short)


def _text(name: str, help: str, default: str = "", short: str = "") -> Flag:
    return Flag(name, "text", default, help, short)


def _int(name: str, help: str, default: int = 0) -> Flag:
    return Flag(name, "int", default, help)


GLOBAL: Final = (
    _text("cacert", "the authority that signed the members' certificates; turns TLS on"),
    _text("cert", "our certificate"),
    Flag("command-timeout", "seconds", 5.0, "how long one call may take, connecting included"),
    _bool("debug", "print the settings and every call on stderr"),
    Flag("dial-timeout", "seconds", 2.0, "how long to wait for a connection before the next endpoint is tried"),
    _text("discovery-srv", "a domain whose SRV records name the endpoints", short="d"),
    _text("discovery-srv-name", "a suffix to the service's name in these records"),
    Flag("endpoints", "list", ["127.0.0.1:2379"], "the members to ask; the next one if the first cannot be reached"),
    _bool("hex", "print keys and values as hexadecimal numbers"),
    _bool("insecure-discovery", "take SRV records for plain connections too", default=True),
    _bool("insecure-skip-tls-verify", "do not check the members' certificates (for tests only)"),
    _bool("insecure-transport", "=false: use TLS even if no file for it is given", default=True),
    _bool("json", "short for --write-out=json"),
    Flag("keepalive-time", "seconds", 2.0, "ask a silent connection whether it lives after this time, at least 10s"),
    Flag("keepalive-timeout", "seconds", 6.0, "how long to wait for that answer"),
    _text("key", "the key of our certificate"),
    _text("password", "the password, if --user is only a name"),
    _text("user", "NAME:PASSWORD, where authentication is on; asks if there is no password"),
    _text("write-out", "how to print: " + ", ".join(FORMATS), "simple", "w"),
)

_PREFIX = _bool("prefix", "all keys that begin with KEY")
_FROM_KEY = _bool("from-key", "all keys from KEY on")
_PREV_KV = _bool("prev-kv", "also what was there before")
_CLUSTER = _bool("cluster", "ask every member of the cluster, not only those in --endpoints")
_LOAD = (
    _text("load", "how much: s, m, l or xl", "s"),
    _bool("auto-compact", "compact when done"),
    _bool("auto-defrag", "defragment when done"),
)

VERBS: Final = (
    Verb(("alarm", "disarm"), "", "disarm all alarms", "maintenance", (), ALL),
    Verb(("alarm", "list"), "", "list the alarms", "maintenance", (), ALL),
    Verb(("auth", "disable"), "", "turn authentication off", "access"),
    Verb(("auth", "enable"), "", "turn authentication on; needs a user root with the role root", "access"),
    Verb(("auth", "status"), "", "say whether authentication is on", "access", (), NO_FIELDS),
    Verb(("check", "datascale"), "", "write many keys and see what memory the member takes", "check", (
        *_LOAD, _text("prefix", "where the keys go", "/etcdctl-check-datascale/"))),
    Verb(("check", "perf"), "", "put the cluster under load for a minute and judge it", "check", (
        *_LOAD, _text("prefix", "where the keys go", "/etcdctl-check-perf/"))),
    Verb(("compaction",), "REVISION", "forget what was before a revision", "kv", (
        _bool("physical", "wait until the space is free"),)),
    Verb(("completion",), "bash|zsh|fish", "print the completion script for a shell", "completion",
         details='eval "$(oarlockctl completion bash)"; for fish: oarlockctl completion fish | source'),
    Verb(("defrag",), "", "defragment the members in --endpoints", "maintenance", (
        _CLUSTER, _text("data-dir", "etcd's way to defragment a stopped member; refused here"))),
    Verb(("del",), "KEY [END]", "remove a key or a range", "kv", (_FROM_KEY, _PREFIX, _PREV_KV), ALL),
    Verb(("elect",), "NAME [PROPOSAL]", "stand for election, or watch who leads", "lock", (
        _bool("listen", "only watch", "l"),), ALL),
    Verb(("endpoint", "hashkv"), "", "print a hash of each member's history of keys", "endpoint", (
        _CLUSTER, _int("rev", "up to this revision (0: the newest)")), ROWS),
    Verb(("endpoint", "health"), "", "say whether each member can commit", "endpoint", (_CLUSTER,), ROWS),
    Verb(("endpoint", "status"), "", "print each member's state", "endpoint", (_CLUSTER,), ROWS),
    Verb(("get",), "KEY [END]", "print a key or a range", "kv", (
        _text("consistency", "l: linearizable, s: serializable (whatever the asked member has)", "l"),
        _bool("count-only", "only the number of keys (with --write-out=fields)"),
        _FROM_KEY,
        _bool("keys-only", "no values"),
        _int("limit", "at most so many (0: all)"),
        _text("order", "ASCEND or DESCEND"),
        _PREFIX,
        _bool("print-value-only", "no keys (with --write-out=simple)"),
        _int("rev", "as it was at this revision (0: now)"),
        _text("sort-by", "CREATE, KEY, MODIFY, VALUE or VERSION"),
    ), ALL, "With END: all keys from KEY to END, END not included."),
    Verb(("help",), "[VERB]", "print help", "help"),
    Verb(("lease", "grant"), "TTL", "make a lease of TTL seconds", "lease", (), ALL),
    Verb(("lease", "keep-alive"), "LEASE", "keep a lease alive until stopped", "lease", (
        _bool("once", "renew it once and end"),), ALL),
    Verb(("lease", "list"), "", "list the leases", "lease", (), ALL),
    Verb(("lease", "revoke"), "LEASE", "end a lease and remove its keys", "lease", (), ALL),
    Verb(("lease", "timetolive"), "LEASE", "say how long a lease has left", "lease", (
        _bool("keys", "also the keys attached to it"),), ALL),
    Verb(("lock",), "NAME [--] [COMMAND ARGUMENT...]", "hold a lock, until stopped or while a command runs", "lock", (
        _int("ttl", "seconds after which the lock is free if we vanish", 10),), ALL,
        "The command finds ETCD_LOCK_KEY and ETCD_LOCK_REV in its environment; its exit code becomes ours.\n"
        "Put `--` before a command that has flags."),
    Verb(("make-mirror",), "DESTINATION", "copy keys, and every later change, to another cluster", "mirror", (
        _text("dest-cacert", "the authority that signed the destination's certificates"),
        _text("dest-cert", "our certificate there"),
        _bool("dest-insecure-transport", "=false: use TLS even if no file for it is given", default=True),
        _text("dest-key", "the key of that certificate"),
        _text("dest-password", "the password there, if --dest-user is only a name"),
        _text("dest-prefix", "put in the place of --prefix there"),
        _text("dest-user", "NAME:PASSWORD there"),
        _bool("no-dest-prefix", "drop --prefix there"),
        _text("prefix", "the keys to copy"),
    )),
    Verb(("member", "add"), "NAME --peer-urls=URL[,URL]", "add a member", "member", (
        _bool("learner", "it learns first and has no vote until it is promoted"),
        _text("peer-urls", "where the other members will reach it")), NO_FIELDS),
    Verb(("member", "list"), "", "list the members", "member", (), MEMBERS,
         "ID, status, name, peer URLs, client URLs, whether it is a learner."),
    Verb(("member", "promote"), "MEMBER", "give a learner a vote", "member", (), NO_FIELDS),
    Verb(("member", "remove"), "MEMBER", "remove a member", "member", (), NO_FIELDS),
    Verb(("member", "update"), "MEMBER --peer-urls=URL[,URL]", "change a member's peer URLs", "member", (
        _text("peer-urls", "where the other members will reach it"),), NO_FIELDS),
    Verb(("move-leader",), "MEMBER", "hand leadership over", "maintenance"),
    Verb(("put",), "KEY [VALUE]", "set a key", "kv", (
        _bool("ignore-lease", "keep the key's lease"),
        _bool("ignore-value", "keep the key's value"),
        _text("lease", "attach the key to this lease (hexadecimal)", "0"),
        _PREV_KV), ALL,
        "Without VALUE, the value is what stdin holds. Put `--` before a key or value that begins with a dash."),
    Verb(("role", "add"), "ROLE", "make a role", "access", (), ALL),
    Verb(("role", "delete"), "ROLE", "remove a role", "access", (), ALL),
    Verb(("role", "get"), "ROLE", "print a role's permissions", "access", (), ALL),
    Verb(("role", "grant-permission"), "ROLE read|write|readwrite KEY [END]", "permit keys to a role", "access", (
        _FROM_KEY, _PREFIX), ALL),
    Verb(("role", "list"), "", "list the roles", "access", (), ALL),
    Verb(("role", "revoke-permission"), "ROLE KEY [END]", "take a permission from a role", "access", (
        _FROM_KEY, _PREFIX), ALL),
    Verb(("snapshot", "restore"), "FILE", "make a data directory for a member of a new cluster", "snapshot", (
        _text("data-dir", "the directory to make (NAME.oarlock)"),
        _text("initial-advertise-peer-urls", "where the other members will reach this one", "http://localhost:2380"),
        _text("initial-cluster", "every member of the new cluster", "default=http://localhost:2380"),
        _text("initial-cluster-token", "what tells the new cluster from others", "etcd-cluster"),
        _text("name", "this member's name", "default"),
        _bool("skip-hash-check", "etcd's way to take an unchecked file; refused here"),
        _text("wal-dir", "etcd's second directory; refused here"))),
    Verb(("snapshot", "save"), "FILE", "back the asked member's store up", "snapshot"),
    Verb(("snapshot", "status"), "FILE", "check a backup and say what it holds", "snapshot", (), ROWS),
    Verb(("txn",), "", "read compares and requests from stdin and do them as one transaction", "txn", (
        _bool("interactive", "say what is expected", "i"),), ALL,
        'First lines of compares such as mod("key") > "0" (ver, create, mod, value, lease; = != < >), then requests\n'
        "(get, put, del) for success, then for failure; an empty line ends each part."),
    Verb(("user", "add"), "USER[:PASSWORD]", "make a user", "access", (
        _bool("interactive", "ask for the password; =false reads one line from stdin", default=True),
        _text("new-user-password", "the password"),
        _bool("no-password", "a user who logs in with a certificate")), ALL),
    Verb(("user", "delete"), "USER", "remove a user", "access", (), ALL),
    Verb(("user", "get"), "USER", "print a user's roles", "access", (
        _bool("detail", "also the roles' permissions"),), ALL),
    Verb(("user", "grant-role"), "USER ROLE", "give a user a role", "access", (), ALL),
    Verb(("user", "list"), "", "list the users", "access", (), NO_FIELDS),
    Verb(("user", "passwd"), "USER", "change a password", "access", (
        _bool("interactive", "ask for the password; =false reads one line from stdin", default=True),), ALL),
    Verb(("user", "revoke-role"), "USER ROLE", "take a role from a user", "access", (), ALL),
    Verb(("version",), "", "print the version", "help"),
    Verb(("watch",), "[KEY [END]] [--] [COMMAND ARGUMENT...]", "print changes as they happen", "watch", (
        _bool("interactive", "read `watch` and `progress` lines from stdin", "i"),
        _PREFIX, _PREV_KV,
        _bool("progress-notify", "ask the server to tell now and then how far it is"),
        _int("rev", "from this revision on (0: now)")), ALL,
        "The command runs for each change, with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and\n"
        "ETCD_WATCH_VALUE in its environment. Without KEY, ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END are taken."),
)  # fmt: skip
BY_WORDS: Final = {verb.words: verb for verb in VERBS}
FAMILIES: Final = {
    "alarm": "alarms", "auth": "authentication", "check": "measuring a cluster",
    "endpoint": "the members in --endpoints",
    "lease": "leases", "member": "the cluster's members", "role": "roles", "snapshot": "backups", "user": "users",
}  # fmt: skip
FAMILY_FLAGS: Final = {"endpoint": (_CLUSTER,)}
"""Flags that may stand between the two words of a family's verbs."""
