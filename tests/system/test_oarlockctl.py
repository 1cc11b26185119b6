"""`oarlockctl` beside etcdctl: the same command lines, against two clusters alike, print the same and end the same.

Once with two members of Oarlock, once with two of a real etcd. Where the two programs differ on purpose is in
docs/reference/oarlockctl.md, and not in these lines.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.ctl import SECONDS, Forks, Printed, environment, printed, words
from tests.system.test_etcdctl_cluster import etcdctl_path

from oarlock.cli.local_cluster import LocalCluster, etcd_program, oarlock_program

pytestmark = pytest.mark.timeout(300)
CAS = r'value("a") = "1"\nmod("b") > "0"\n\nput a 5\nget a\ndel zz\n\n'
ELSE = r"put a 1\nget a\ndel b --prefix\nget a --prefix --keys-only\n\n"
# A line is a command line; ` <<< ` begins what stdin holds, with \n for the end of a line.
KEYS = rf"""
put a 1
put a 2 --prev-kv
put ab 3
put abc 4
get a
get a -w json
get a -w fields
put a 2 --prev-kv -w json
put a 2 --prev-kv -w fields
get a --prefix
get a --prefix -w json
get a --prefix -w fields --limit 1
get a b
get a abc --order DESCEND
get missing
get missing -w json
get missing -w fields
get a --count-only -w fields
get a --prefix --keys-only
get a --prefix --keys-only --order=descend --limit 1
get a --prefix --sort-by version
get a --prefix --sort-by=MODIFY --order ASCEND
get a --prefix --sort-by CREATE --order DESCEND
get a --prefix --sort-by VALUE
get --from-key ab
get "" --prefix --keys-only
get "" --from-key --print-value-only
get a --consistency s
get a --rev 999999
get a --rev -1
get a --limit -1
get a --hex
get a --hex -w fields
get a --hex -w json
get a b c
put "" x
get ""
put "k\\" "<v&\"ü☃>"
get "k\\"
get "k\\" -w fields
get "k\\" --hex
get "k\\" -w json
put -- -k -v
get -- -k
put fromstdin <<< two\nlines\n
get fromstdin
put a --ignore-value
put nothere --ignore-value
put a x --lease 99
put a x --ignore-lease
del a --prev-kv
del ab -w json
del nothing
del ab --prefix --prev-kv -w fields
put b1 1
put b2 2
del b1 b3 --prev-kv -w json
del --from-key zzzz
compaction 3
compaction 3
compaction 999999
get a --rev 1
txn <<< {CAS}{ELSE}
txn -w json <<< {CAS}{ELSE}
txn -w fields <<< {CAS}{ELSE}
txn -i <<< {CAS}{ELSE}
txn <<< \nput "quo ted" "v\\tal"\nget "quo ted"\n\n\n
txn <<< ver("a") < "99"\nc("nothing") = "0"\nm("a") != "1"\nval("a") > "0"\n\nget a\n\n\n
txn <<< \nput a b c\n\n\n
txn <<< \nput a 1\nput a 2\n\n\n
txn <<< \ndel a --prev-kv\nput z 1 --prev-kv\n\n\n
txn <<< \n\n\n
del "" --prefix --prev-kv -w json
del "" --from-key
"""
LEASES = """
lease grant 100
lease grant 100 -w json
lease grant 100 -w fields
lease grant -- -5
lease grant 99999999999
lease timetolive 12345
lease timetolive 12345 -w json
lease timetolive 12345 -w fields
lease timetolive 12345 --keys
lease keep-alive 12345
lease keep-alive --once 12345
lease revoke 1
"""
CLUSTER = """
member list
member list -w json
member list -w fields
member list -w table
member list --hex -w json
member list --hex
endpoint health
endpoint health -w json
endpoint health -w fields
endpoint health --cluster
endpoint --cluster health
endpoint hashkv --rev 99999
endpoint status -w nonsense
alarm list
alarm list -w json
alarm list -w fields
alarm disarm
alarm disarm -w json
move-leader 1234
defrag
defrag --cluster -w json
member add x --peer-urls=nonsense
member add x --peer-urls=http://a
member add x --peer-urls=http://a:1/p
member remove 1234
member update 1234 --peer-urls=http://a:1
member promote 1234
member add new --learner --peer-urls=http://127.0.0.1:1
member list
member list -w table
lock name echo held
lock name sh -- -c 'exit 7'
lock name -- sh -c 'kill -9 $$'
lock name nonexistent-command
lock name /nonexistent/command
lock name /etc/hostname
lock name --ttl=0 true
lock name -- sh -c 'echo $ETCD_LOCK_KEY; test $ETCD_LOCK_REV -gt 0'
lock name cat <<< to the command
watch a --rev=1
watch a --rev=1 -w json
watch -i <<< foo\\nwatch\\n
check perf --load zz
check datascale --load q
snapshot save /nonexistent/directory/file
"""
ACCESS = """
auth status
auth status -w json
role add r1
role add r2 -w json
role add r1
user add u1:pw
user add u2:pw -w fields
user add u1:pw
user add a1 --interactive=false <<< pw\\n
user add a2 --no-password
user add a3 --new-user-password=x
user add a4 <<< a4pw\\na4pw\\n
user add a5 <<< x\\ny\\n
user grant-role u1 r1
user grant-role u1 r2 -w json
user grant-role a1 nope
user revoke-role a1 nope
role grant-permission r1 readwrite foo
role grant-permission r1 READ pre --prefix
role grant-permission r1 write fk --from-key
role grant-permission r1 write fk fz
role grant-permission r1 write "" --prefix
role grant-permission nope read key
role get r1
role get r1 -w json
role get r1 -w fields
role get nope
role get root
role list
role list -w fields
role list -w json
user list
user list -w json
user get u1
user get a1
user get u1 -w json
user get u1 --detail
user get u1 --detail -w json
user get u1 --detail -w fields
user get nope
role revoke-permission r1 foo
role revoke-permission r1 pre --prefix
role revoke-permission r1 fk --from-key
role revoke-permission r1 fk fz
role revoke-permission r1 "" --prefix
role revoke-permission r1 nokey
user revoke-role u1 r2
user passwd u1 --interactive=false <<< new\\n
user passwd u1 <<< newer\\nnewer\\n
user delete u2
user delete nope
role delete r2
role delete nope
auth enable
auth disable
get a --user root:x
user add root:r
user grant-role u1 r1
role grant-permission r1 readwrite mine/ --prefix
auth enable
auth status --user root:r
get a
get a --user root:bad
get a --user root:r
get a --user root --password r
get a --user root <<< r\\n
get a --user u1:newer
put mine/1 x --user u1:newer
put other x --user u1:newer
endpoint health --user u1:newer
endpoint health
watch a --user u1:newer
lock other true --user u1:newer
lock mine/l true --user u1:newer
txn --user u1:newer <<< \\nput other b\\n\\n\\n
auth disable --user u1:newer
user get root --user root:r --detail
auth disable --user root:r
"""
REFUSED = """
nonsense
lease
get
get a --nonsense
get -x
-zz get
get a --limit
get a --limit many
get --limit=99999999999999999999 a
get a --rev=abc
get a --hex=q
get a --order UP
get a --sort-by SIZE
get a --consistency x
get a --command-timeout 3x
get a --command-timeout=1
get a --command-timeout=
get a --command-timeout=0
get a -w nonsense
get a --count-only
get a --print-value-only -w json
get a --from-key --prefix
get a b --prefix
put
put x
put x --lease zz
put a b --lease zz
put a b --lease=0x12
put a b --ignore-value
put a --ignore-lease
del
del a b c
del a --prefix --from-key
del a b --prefix
compaction
compaction x
compaction 5 6
txn x
txn
txn <<< foo\\n
txn <<< bogus("a") = "1"\\n\\n\\n\\n
txn <<< mod("a") = "x"\\n\\n\\n\\n
txn <<< \\nfoo a\\n\\n\\n
txn <<< \\n\\n
lease grant
lease grant x
lease grant 1e3
lease grant 5 9
lease timetolive
lease timetolive zz
lease keep-alive
lease keep-alive xx
lease revoke
lease revoke zz
lease revoke 1 2
member add
member add x
member add x http://a:1
member add a b --peer-urls=http://x:1
member remove
member remove zz
member update
member update 1234
member promote zz
move-leader
move-leader zz
alarm list x
alarm disarm x
auth enable x
auth disable x
auth status x
user add
user add a b
user add :pw
user delete
user get
user passwd
user list x
user grant-role
role add
role get a b
role delete
role list x
role grant-permission
role grant-permission r foo key
role grant-permission r read x y --prefix
role grant-permission r read x --prefix --from-key
role revoke-permission
lock
lock l --ttl=x
elect
elect a b c
elect e
elect -l a b
watch
watch a b --prefix
watch --
watch a --
snapshot save
snapshot save a b
snapshot status
snapshot restore
make-mirror
make-mirror a b
get a --cacert nope
get a --cert nope
get a --cert nope --key nope
--endpoints= get a
--endpoints={E},127.0.0.1:1 snapshot save x
"""
OF_3_4 = """
put a 1 --prev-kv
get a
get a -w json
get a -w fields
get a --prefix --keys-only
get missing
get a --order UP
get a --consistency x
put
del a --prev-kv
compaction 999999
txn <<< \\nput a 1\\nget a\\n\\n\\n
txn <<< foo\\n
lease grant 100
lease timetolive 12345
lease grant x
member list
alarm list
role add r1
role get r1
user add u:pw
user get u
lock name echo held
elect a b c
watch a b --prefix
"""


@pytest.fixture(scope="module", params=["oarlock", "etcd"])
def twins(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The endpoints of two members alike, each a cluster of its own."""
    program = {"oarlock": oarlock_program, "etcd": etcd_program}[request.param]()
    with LocalCluster(program, 1) as one, LocalCluster(program, 1) as other:
        for cluster in (one, other):
            cluster.start()
        yield [one.endpoints[0], other.endpoints[0]]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as started:
        yield started


def compare(lines: str, twins: list[str], forks: Forks, version: str = "3.5") -> None:
    """Run every line with both programs, each on its own twin; all differences at once."""
    different = []
    etcdctl = etcdctl_path(version)
    for line in lines.strip().splitlines():
        typed, _, after = line.partition("<<<")
        stdin = after.strip(" ").replace("\\n", "\n").replace("\\\n", "\\n").replace("\\\\", "\\").encode()
        pipe = subprocess.PIPE
        process = subprocess.Popen([etcdctl, *words(typed, twins[0])], stdin=pipe, stdout=pipe, stderr=pipe,
                                   env=environment())  # fmt: skip
        ours = printed(*forks.run(words(typed, twins[1]), stdin), {twins[1]: "HOST"})
        out, err = process.communicate(stdin, timeout=SECONDS)
        theirs = printed(process.returncode, out, err, {twins[0]: "HOST"})
        if "GLOBAL OPTIONS" in theirs.out:  # its help, where ours says how to ask for it
            theirs = Printed(theirs.code, "", theirs.errors)
            ours = ours if ours.code else Printed(ours.code, "", ours.errors)
        if _without_peers(theirs) != _without_peers(ours):
            different.append(f"{line}\n  etcdctl    {theirs}\n  oarlockctl {ours}")
    assert not different, "\n".join(different)


def _without_peers(printed: Printed) -> Printed:
    """Without the ports of peers, the frames of tables, whose width follows them, and the order that ids make."""
    out = re.sub(r"http://127\.0\.0\.1:\d{2,}", "PEER", printed.out)
    if out.startswith("+--"):
        out = re.sub(r"-+", "-", re.sub(r" +", " ", out))
    if "unstarted" in out:
        out = "".join(sorted(out.splitlines(keepends=True)))
    out = re.sub(r'(ETCD_INITIAL_CLUSTER=")(.*)"', lambda found: found[1] + ",".join(sorted(found[2].split(","))), out)
    return Printed(printed.code, out, printed.errors)


@pytest.mark.parametrize("lines", [KEYS, LEASES, CLUSTER, ACCESS], ids=["keys", "leases", "cluster", "access"])
def test_the_same_lines_print_the_same(twins: list[str], forks: Forks, lines: str) -> None:
    compare(lines, twins, forks)


def test_the_same_lines_are_refused(twins: list[str], forks: Forks) -> None:
    compare(REFUSED, twins, forks)


def test_etcdctl_3_4_prints_the_same_too(twins: list[str], forks: Forks) -> None:
    compare(OF_3_4, twins, forks, "3.4")


def test_a_get_loads_no_event_loop() -> None:
    code = "import oarlock.ctl.app, oarlock.ctl.kv, oarlock.ctl.client, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    heavy = {"asyncio", "click", "rich", "ssl", "uvloop", "grpc", "argparse", "http.client", "email", "json"}
    assert not {*heavy, "google.protobuf.descriptor_pb2", "importlib.resources"} & set(done.stdout.split())


def test_the_reference_page_is_fresh() -> None:
    from oarlock.ctl import reference

    page = (Path(__file__).parents[2] / "docs/reference/oarlockctl.md").read_text()
    assert page == reference.render(), "docs/reference/oarlockctl.md is stale: run `make bless` and read the diff"
