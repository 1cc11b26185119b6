"""Words, flags, environment and help, without a server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from oarlock.ctl import app, completion, failures, verbs
from oarlock.ctl.failures import Failure
from oarlock.ctl.flags import HelpWanted, environment, parse
from oarlock.ctl.verbs import BY_WORDS, GLOBAL, VERBS

GET = (*BY_WORDS["get",].flags, *GLOBAL)


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = app.run(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_flags_stand_anywhere() -> None:
    parsed = parse(["a", "--limit", "3", "-w=json", "b", "--prefix", "--keys-only=false", "--", "--rev"], GET)
    assert parsed.args == ["a", "b", "--rev"] and parsed.dash == 2
    assert (parsed.flags["limit"], parsed.flags["write_out"], parsed.flags["prefix"]) == (3, "json", True)
    assert "keys_only" in parsed.given and not parsed.flags["keys_only"]


def test_endpoints_given_twice_are_one_list() -> None:
    assert parse(["--endpoints=a,b", "--endpoints", "c"], GET, {"endpoints": ["x"]}).flags["endpoints"] == list("abc")


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--nonsense"], "unknown flag: --nonsense"), (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["--limit"], "flag needs an argument: --limit"), (["-w"], "flag needs an argument: 'w' in -w"),
        (["--limit=x"], 'invalid argument "x" for "--limit" flag'), (["--hex=q"], 'invalid argument "q" for "--hex"'),
        (["--dial-timeout=1"], "missing unit"),
    ],
)  # fmt: skip
def test_flags_that_are_wrong(words: list[str], wrong: str) -> None:
    with pytest.raises(Failure, match=wrong) as error:
        parse(words, GET)
    assert error.value.code == failures.FAILED


def test_a_flag_that_is_nearly_right_is_named() -> None:
    with pytest.raises(Failure) as error:
        parse(["--prefx"], GET)
    assert "--prefix" in error.value.hint


def test_help_is_asked_for() -> None:
    for words in (["--help"], ["-h"], ["a", "-h"]):
        with pytest.raises(HelpWanted):
            parse(words, GET)


def test_our_variables_go_before_etcdctls() -> None:
    variables = {"OARLOCKCTL_ENDPOINTS": "a:1", "ETCDCTL_ENDPOINTS": "b:1", "ETCDCTL_HEX": "true", "ETCDCTL_API": "3"}
    assert environment(variables, GLOBAL) == ({"endpoints": ["a:1"], "hex": True}, [])
    found, unknown = environment({"ETCDCTL_NONSENSE": "x", "OARLOCKCTL_USER": "", "ETCDCTL_USER": "u"}, GLOBAL)
    assert (found, unknown) == ({"user": "u"}, ["ETCDCTL_NONSENSE"])
    with pytest.raises(Failure, match="ETCDCTL_DIAL_TIMEOUT"):
        environment({"ETCDCTL_DIAL_TIMEOUT": "soon"}, GLOBAL)


def test_verbs_are_found_behind_flags() -> None:
    for words, name in (
        (["--endpoints", "get", "put", "a"], "put"), (["-w", "json", "--hex", "get"], "get"),
        (["member", "list"], "member list"), (["endpoint", "--cluster", "health"], "endpoint health"),
        (["--debug", "lease", "--user", "a:b", "grant", "5"], "lease grant"),
    ):  # fmt: skip
        verb, _ = app.find(words)
        assert verb is not None and verb.name == name


def test_a_verb_that_is_nearly_right_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("gett", "a", capsys=capsys)
    assert (code, out) == (1, "") and 'unknown command "gett"' in err and "did you mean get?" in err


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_its_function_and_help(verb: verbs.Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(app.function(verb))
    assert set(verb.formats) <= set(verbs.FORMATS)
    code, out, err = run(*verb.words, "--help", capsys=capsys)
    assert (code, err) == (0, "") and f"oarlockctl {verb.name}" in out
    for flag in (*verb.flags, *GLOBAL):
        assert f"--{flag.name}" in out


def test_help_on_everything_and_on_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    everything = run(capsys=capsys)[1]
    assert all(verb.name in everything and verb.summary in everything for verb in VERBS)
    assert run("help", capsys=capsys)[1] == everything
    member = run("member", capsys=capsys)[1]
    assert "promote" in member and "lease" not in member
    assert run("help", "member", "add", capsys=capsys)[1] == run("member", "add", "-h", capsys=capsys)[1]


def test_a_format_that_a_verb_lacks_is_refused_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("put", "a", "b", "-w", "table", "--endpoints=127.0.0.1:1", capsys=capsys)
    assert (code, out) == (failures.BAD_FEATURE, "") and "table not supported as output format" in err


def test_a_dead_endpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("get", "a", "--endpoints=127.0.0.1:1", "--command-timeout=300ms", capsys=capsys)
    assert (code, out) == (failures.FAILED, "")
    assert err.startswith("Error: context deadline exceeded\n") and "127.0.0.1:1: Connection refused" in err


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "host:port", "unix:///nonexistent/socket", ":0"])
def test_endpoints_that_make_no_sense(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("get", "a", f"--endpoints={endpoint}", "--command-timeout=200ms", capsys=capsys)
    assert code == failures.FAILED and "context deadline exceeded" in err


def test_every_exit_code_has_a_meaning() -> None:
    codes = {value for name, value in vars(failures).items() if name.isupper() and isinstance(value, int)}
    assert codes == set(failures.MEANINGS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    script = completion.script(shell)
    for verb in VERBS:
        assert verb.words[-1] in script
        assert all(flag.name in script for flag in verb.flags)
    program = shutil.which(shell)
    if program is not None:  # bash is everywhere; the other shells where somebody has them
        file = tmp_path / "script"
        file.write_text(script)
        assert subprocess.run([program, "-n", str(file)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("oarlockctl ge", "get"), ("oarlockctl member ", "promote"), ("oarlockctl get --pre", "--prefix"),
        ("oarlockctl --endpoints x get --key", "--keys-only"), ("oarlockctl get -w js", "json"),
        ("oarlockctl lease grant --cac", "--cacert="), ("oarlockctl completion f", "fish"),
    ],
)  # fmt: skip
def test_bash_completes(typed: str, wanted: str) -> None:
    words = typed.split(" ")
    listed = " ".join(f"'{word}'" for word in words)
    script = f"{completion.script('bash')}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _oarlockctl\n"
    done = subprocess.run(
        ["bash", "-c", script + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=False
    )
    assert wanted in done.stdout.split(), done
