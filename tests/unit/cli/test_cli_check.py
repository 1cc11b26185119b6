"""`oarlock check`: verdicts, exit codes, the picture, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oarlock.cli.app import main

DATA = Path(__file__).resolve().parents[2] / "data" / "linearizability"
STALE = """\
{"process": 1, "op": "write", "key": "x", "value": 1, "start": 0, "end": 1}
{"process": 2, "op": "write", "key": "x", "value": 2, "start": 2, "end": 3}
{"process": 3, "op": "read", "key": "x", "start": 4, "end": 5, "result": 1}
"""


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    path = tmp_path / "stale.jsonl"
    path.write_text(STALE)
    return path


def test_a_history_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "good.jsonl"
    path.write_text(STALE.replace('"result": 1', '"result": 2'))
    assert main(["check", str(path)]) == 0
    assert "linearizable (3 operations on 1 keys, model register" in capsys.readouterr().out


def test_a_violation_is_explained_and_drawn(stale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["check", str(stale), "--html", str(page)]) == 1
    output = capsys.readouterr().out
    assert 'key "x": process 3: read = 1 has no place' in output
    assert "step 2, write 2 of process 2, had ended before it began" in output
    assert "<svg" in page.read_text()


def test_json(stale: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(stale), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["linearizable"] is False
    assert report["violations"][0]["unplaced"]["operation"] == "read = 1"
    assert [step["value_after"] for step in report["violations"][0]["order"]] == [1, 2]


@pytest.mark.parametrize(
    ("group", "form", "name", "code"),
    [
        ("jepsen-etcd", "jepsen", "etcd_000.log", 1),
        ("jepsen-etcd", "jepsen", "etcd_002.log", 0),
        ("kv", "porcupine-kv", "c10-ok.txt", 0),
        ("kv", "porcupine-kv", "c01-bad.txt", 1),
    ],
)
def test_published_formats(group: str, form: str, name: str, code: int) -> None:
    assert main(["check", str(DATA / group / name), "--format", form]) == code


def test_a_wrong_line_names_file_line_and_column(stale: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale.write_text(STALE + '{"process": 3, "op": "reed", "start": 6}\n')
    assert main(["check", str(stale)]) == 2
    assert f"{stale}:4:22: `op` must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "jepsen"], ":1:1: not an event of a register"),
        (["--format", "porcupine-kv", "--model", "register"], "holds operations of the model kv, not of register"),
        (["--model", "kv"], ":1:22: `write` is not an operation of the model kv"),
        (["--format", "yaml"], "'yaml' is not one of"),
        (["--html", "/nowhere/x.html"], "cannot write /nowhere/x.html"),
    ],
)
def test_bad_input(stale: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(stale), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xff\xfe")
    assert main(["check", str(path)]) == 2
    assert "is not text in UTF-8: byte 0 is 0xff" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none")]) == 2


def test_too_concurrent_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wide.jsonl"
    lines = [{"process": n, "op": "append", "value": str(n), "start": 0, "end": 9} for n in range(12)]
    lines.append({"process": 99, "op": "get", "start": 10, "end": 11, "result": "never"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["check", str(path), "--configurations", "1000"]) == 3
    assert "undecided: more than 1000 configurations" in capsys.readouterr().err
