"""TLS as operators use it: certificates of `oarlock pki`, stock etcdctl and openssl, real processes."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.system.test_etcdctl_cluster import etcdctl_path

from oarlock.cli.local_cluster import free_ports, wait_until

pytestmark = pytest.mark.timeout(400)
SECONDS = 120.0


def cli(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "oarlock", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


class Server:
    """One member; `stop` and `log`."""

    def __init__(self, directory: Path, *flags: str, name: str = "n1", peer: str = "http", ready: bool = True) -> None:
        self.client_port, self.peer_port = free_ports(2)
        self.log_path = directory / f"{name}-{self.client_port}.log"
        urls = f"https://127.0.0.1:{self.client_port}"
        peers = f"{peer}://127.0.0.1:{self.peer_port}"
        cluster = next((f.partition("=")[2] for f in flags if f.startswith("--initial-cluster=")), f"{name}={peers}")
        self.command = [
            sys.executable, "-m", "oarlock", "serve", f"--name={name}", f"--data-dir={directory}/{name}.data",
            f"--listen-client-urls={urls}", f"--advertise-client-urls={urls}", f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}", f"--initial-cluster={cluster}",
            *(f for f in flags if not f.startswith("--initial-cluster=")),
        ]  # fmt: skip
        self._out = self.log_path.open("ab")
        self.process = subprocess.Popen(self.command, stdout=self._out, stderr=subprocess.STDOUT)
        if ready:
            wait_until(lambda: "oarlock ready" in self.log or self.process.poll() is not None, SECONDS, "ready")
            assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.client_port}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._out.close()

    def ctl(self, *arguments: str, version: str = "3.5", seconds: int = 60) -> subprocess.CompletedProcess[str]:
        command = [
            etcdctl_path(version), f"--endpoints={self.endpoint}", f"--dial-timeout={seconds}s",
            f"--command-timeout={seconds}s", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def s_client(self, *arguments: str) -> str:
        """What openssl says of a handshake."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.client_port}", "-alpn", "h2", *arguments]
        done = subprocess.run(command, input="", capture_output=True, text=True, timeout=120, check=False)
        return done.stdout + done.stderr


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    directory = tmp_path / "pki"
    cli("pki", "init", "--dir", str(directory))
    cli("pki", "member", "n1", "--dir", str(directory), "--host", "127.0.0.1")
    cli("pki", "client", "alice", "--dir", str(directory))
    return directory


def of(pki: Path, user: str) -> list[str]:
    return [f"--cacert={pki}/ca.pem", f"--cert={pki}/client-{user}.pem", f"--key={pki}/client-{user}-key.pem"]


def served(pki: Path) -> list[str]:
    return [f"--cert-file={pki}/n1.pem", f"--key-file={pki}/n1-key.pem", f"--trusted-ca-file={pki}/ca.pem"]


def test_keys_are_private_and_nothing_is_overwritten(pki: Path) -> None:
    for key in ("ca-key.pem", "n1-key.pem", "client-alice-key.pem"):
        assert stat.S_IMODE((pki / key).stat().st_mode) == 0o600
    before = (pki / "ca.pem").read_bytes()
    assert "exists" in cli("pki", "init", "--dir", str(pki), code=1)
    assert "exists" in cli("pki", "member", "n1", "--dir", str(pki), code=1)
    assert (pki / "ca.pem").read_bytes() == before
    assert "`oarlock pki init` makes an authority" in cli("pki", "client", "x", "--dir", str(pki / "none"), code=1)


@pytest.mark.parametrize("version", ["3.5", "3.4"])
def test_etcdctl_needs_a_client_certificate(pki: Path, tmp_path: Path, version: str) -> None:
    with Server(tmp_path, *served(pki), "--client-cert-auth") as server:
        assert server.ctl("put", "k", "v", *of(pki, "alice"), version=version).stdout == "OK\n"
        assert server.ctl("get", "k", *of(pki, "alice"), version=version).stdout == "k\nv\n"
        assert server.ctl("get", "k", f"--cacert={pki}/ca.pem", version=version, seconds=5).returncode != 0
        asked = ["--endpoints", server.endpoint, "--cacert", f"{pki}/ca.pem"]
        shown = [*asked, "--cert", f"{pki}/client-alice.pem", "--key", f"{pki}/client-alice-key.pem"]
        assert "1 keys" in cli("snapshot", "save", str(tmp_path / "b.db"), *shown)
        cli("snapshot", "save", str(tmp_path / "c.db"), *asked, code=1)
        other = tmp_path / "other"
        cli("pki", "init", "--dir", str(other))
        cli("pki", "client", "alice", "--dir", str(other))
        foreign = [f"--cacert={pki}/ca.pem", *of(other, "alice")[1:]]
        assert server.ctl("get", "k", *foreign, version=version, seconds=5).returncode != 0


def test_a_revoked_certificate_is_refused_on_every_listener_once_the_list_has_changed(
    pki: Path, tmp_path: Path
) -> None:
    cli("pki", "client", "bob", "--dir", str(pki))
    second = free_ports(1)[0]
    flags = [*served(pki), "--client-cert-auth", f"--client-crl-file={pki}/crl.pem"]
    with Server(tmp_path, *flags) as server:
        both = f"{server.endpoint},https://localhost:{second}"
        server.process.terminate()
        server.process.wait()
        command = [part.replace(f"urls={server.endpoint}", f"urls={both}") if "client-urls" in part else part
                   for part in server.command]  # fmt: skip
        server.log_path.write_text("")
        server.process = subprocess.Popen(command, stdout=server._out, stderr=subprocess.STDOUT)
        wait_until(lambda: "oarlock ready" in server.log, SECONDS, "ready")
        for user in ("alice", "bob"):
            assert server.ctl("put", "k", user, *of(pki, user)).stdout == "OK\n"
        assert "lists 1" in cli("pki", "revoke", str(pki / "client-bob.pem"), "--dir", str(pki))
        for port in (server.client_port, second):
            endpoint = f"--endpoints=https://127.0.0.1:{port}"
            assert server.ctl("get", "k", *of(pki, "bob"), endpoint, seconds=5).returncode != 0
            assert server.ctl("get", "k", *of(pki, "alice"), endpoint).stdout == "k\nbob\n"
            http = _https_get(port, pki, "bob")
            assert "200" not in http, "the HTTP/1.1 side of the port lets it in"
            assert "200" in _https_get(port, pki, "alice")


def _https_get(port: int, pki: Path, user: str) -> str:
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    context.load_cert_chain(pki / f"client-{user}.pem", pki / f"client-{user}-key.pem")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=120) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                secure.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                return secure.recv(1000).decode()
    except OSError as error:
        return str(error)


def test_a_renewed_certificate_is_shown_without_a_restart_and_a_broken_one_never(pki: Path, tmp_path: Path) -> None:
    with Server(tmp_path, f"--cert-file={pki}/n1.pem", f"--key-file={pki}/n1-key.pem") as server:

        def serial() -> str:
            shown = server.s_client("-CAfile", str(pki / "ca.pem"))
            pem = shown[shown.index("-----BEGIN") : shown.index("-----END") + 25]
            return subprocess.run(
                ["openssl", "x509", "-noout", "-serial"], input=pem, capture_output=True, text=True, check=True
            ).stdout

        first = serial()
        assert serial() == first
        for file in ("n1.pem", "n1-key.pem"):
            (pki / file).rename(pki / f"old-{file}")
        cli("pki", "member", "n1", "--dir", str(pki), "--host", "127.0.0.1")
        second = serial()
        assert second != first
        (pki / "n1.pem").write_text("nonsense")
        assert serial() == second
        assert "the former ones stay" in server.log
        assert server.ctl("put", "k", "v", f"--cacert={pki}/ca.pem").stdout == "OK\n"


def test_versions_and_ciphers_are_what_was_asked_for(pki: Path, tmp_path: Path) -> None:
    flags = [f"--cert-file={pki}/n1.pem", f"--key-file={pki}/n1-key.pem"]
    suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    with Server(tmp_path, *flags, "--tls-max-version=TLS1.2", f"--cipher-suites={suite}") as server:
        assert "ECDHE-ECDSA-AES256-GCM-SHA384" in server.s_client("-tls1_2")
        assert "Cipher is (NONE)" in server.s_client("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256")
        assert "Cipher is (NONE)" in server.s_client("-tls1_3")
    with Server(tmp_path, *flags, "--tls-min-version=TLS1.3", name="n2") as server:
        assert "TLSv1.3" in server.s_client("-tls1_3")
        assert "Cipher is (NONE)" in server.s_client("-tls1_2")


def test_a_client_that_says_nothing_is_cut_off(pki: Path, tmp_path: Path) -> None:
    with Server(tmp_path, f"--cert-file={pki}/n1.pem", f"--key-file={pki}/n1-key.pem") as server:
        for start in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with socket.create_connection(("127.0.0.1", server.client_port), timeout=110) as quiet:
                quiet.sendall(start)
                began = time.monotonic()
                assert quiet.recv(1) == b""
                assert time.monotonic() - began < 100


def test_auto_tls_serves_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    with Server(tmp_path, "--auto-tls", "--peer-auto-tls", peer="https") as server:
        flags = ["--insecure-transport=false", "--insecure-skip-tls-verify"]
        assert server.ctl("put", "k", "v", *flags).stdout == "OK\n"
        key = tmp_path / "n1.data" / "fixtures" / "client" / "key.pem"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


@pytest.fixture
def broken(pki: Path, tmp_path: Path) -> Path:
    cli("pki", "member", "other", "--dir", str(pki))
    (pki / "old-key.pem").write_bytes((pki / "n1-key.pem").read_bytes())
    (tmp_path / "der").write_bytes(b"\x30\x03\x02\x01\x00")
    return pki


def test_files_that_do_not_fit_are_named_at_the_start(broken: Path, tmp_path: Path) -> None:
    pki = broken
    good = f"--cert-file={pki}/n1.pem"
    cases = [
        ([good, f"--key-file={pki}/other-key.pem"], "other-key.pem is not the key of cert-file"),
        ([good, f"--key-file={pki}/none.pem"], "key-file", "cannot be read: No such file"),
        ([good, f"--key-file={pki}/n1-key.pem", f"--trusted-ca-file={pki}/n1-key.pem"], "has no usable certificate"),
        ([*served(pki), f"--client-crl-file={tmp_path}/der"], "holds no revocation list in PEM form"),
        ([good, f"--key-file={pki}/n1-key.pem", f"--client-crl-file={pki}/crl.pem"], "without trusted-ca-file"),
        (
            [good, f"--key-file={pki}/n1-key.pem", "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA38"],
            "did you mean",
        ),
    ]
    for flags, *texts in cases:
        with Server(tmp_path, *flags, ready=False) as server:
            assert server.process.wait(SECONDS) == 1, server.log
            for text in texts:
                assert text in server.log, server.log
    if os.geteuid() != 0:  # root reads everything
        (pki / "n1-key.pem").chmod(0)
        with Server(tmp_path, good, f"--key-file={pki}/n1-key.pem", ready=False) as server:
            assert server.process.wait(SECONDS) == 1
            assert f"runs as user {os.geteuid()}" in server.log


def test_peers_need_their_own_names_in_certificates_and_a_new_member_does_too(pki: Path, tmp_path: Path) -> None:
    cli("pki", "member", "n2", "--dir", str(pki))

    def peer_flags(name: str) -> list[str]:
        return [
            f"--cert-file={pki}/n1.pem", f"--key-file={pki}/n1-key.pem",
            f"--peer-cert-file={pki}/{name}.pem", f"--peer-key-file={pki}/{name}-key.pem",
            f"--peer-trusted-ca-file={pki}/ca.pem", "--peer-client-cert-auth",
        ]  # fmt: skip

    with Server(tmp_path, *peer_flags("n1"), peer="https") as one:
        trust = f"--cacert={pki}/ca.pem"
        wait_until(lambda: one.ctl("put", "k", "v", trust).returncode == 0, SECONDS, "it leads")
        port = free_ports(1)[0]
        url = f"https://127.0.0.1:{port}"
        assert one.ctl("member", "add", "n2", f"--peer-urls={url}", trust).returncode == 0
        command = [
            sys.executable, "-m", "oarlock", "serve", "--name=n2", f"--data-dir={tmp_path}/n2.data",
            f"--listen-client-urls=https://127.0.0.1:{free_ports(1)[0]}", "--advertise-client-urls=https://127.0.0.1:1",
            f"--listen-peer-urls={url}", f"--initial-advertise-peer-urls={url}", "--initial-cluster-state=existing",
            f"--initial-cluster=n1=https://127.0.0.1:{one.peer_port},n2={url}",
        ]  # fmt: skip
        wrong = subprocess.run([*command, *peer_flags("n1")], capture_output=True, text=True, timeout=120, check=False)
        assert wrong.returncode == 1
        assert "is not for this member" in wrong.stderr
        out = (tmp_path / "n2.log").open("wb")
        right = subprocess.Popen([*command, *peer_flags("n2")], stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_until(
                lambda: '"name":"n2"' in one.ctl("member", "list", "-w", "json", trust).stdout, SECONDS, "n2 has joined"
            )
        finally:
            right.kill()
            right.wait()
            out.close()
