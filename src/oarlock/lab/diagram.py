"""A sequence diagram of the end of a run: a lane for each member and one for the clients, time going down.

Messages are arrows, with their text where they arrive; a lane is thick while its member leads, amber while it is a
candidate, broken while it is down. Elections, commits, cuts and crashes are marked, the violation in red at the end.
Heartbeats that change nothing are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from oarlock.check.page import page
from oarlock.node.replica import events as ev
from oarlock.raft import events as raft
from oarlock.raft import messages as ms
from oarlock.raft.types import NodeId
from oarlock.sim import notation
from oarlock.sim.world.recording import Links, Moment, Note, Recording, Sent, State, Turn

ROWS_MAX: Final = 64  # of one diagram: its end is what matters
LINE: Final = 19
TOP: Final = 64
LEFT: Final = 92  # the column of times
CLIENTS: Final = 150  # width of the clients' lane
LANE_MIN, LANE_MAX = 190, 300
CHAR: Final = 6.75

STYLE: Final = """
main{max-width:none}
svg text{font-size:11px;paint-order:stroke;stroke:var(--panel);stroke-width:4px;stroke-linejoin:round}
svg .head{font-size:13px;font-weight:700}svg .time{fill:var(--soft);font-size:10.5px}
.life{stroke:var(--soft);stroke-width:1.2}.life.leader{stroke:var(--accent);stroke-width:5}
.life.candidate,.life.precandidate{stroke:var(--warn);stroke-width:4}
.life.down{stroke:var(--bad);stroke-width:1.2;stroke-dasharray:2 5}
.arrow{stroke:var(--fg);stroke-width:1;stroke-opacity:.5;fill:none}.arrow.quiet{stroke:var(--soft);stroke-opacity:.5}
.arrow.lost{stroke:var(--bad);stroke-dasharray:4 3}.arrow.vote{stroke:var(--violet)}.arrow.client{stroke:var(--ok)}
.tip{fill:var(--fg)}.tip.quiet{fill:var(--soft)}.tip.vote{fill:var(--violet)}.tip.client{fill:var(--ok)}
.tag{fill:var(--panel);stroke:var(--line)}.tag.commit{stroke:var(--ok)}.tag.leader{stroke:var(--accent);stroke-width:2}
.tag.bad{fill:var(--bad-soft);stroke:var(--bad)}.tag.candidate{stroke:var(--warn);stroke-width:2}
.tag.disk{stroke:var(--line);stroke-dasharray:2 2}
svg text.plain{stroke:none}
.band{fill:var(--warn-soft)}svg text.bandtext{fill:var(--warn);font-weight:700;stroke:none}
.end{fill:var(--bad-soft);stroke:var(--bad)}
svg text.endtext{fill:var(--bad);font-weight:700;font-size:12.5px;stroke:none}
.dot{fill:var(--bad)}
"""


@dataclass(slots=True)
class _Row:
    """What happened to one member at one moment, or to the links (`node` 0)."""

    at: int
    node: NodeId
    arrived: list[Sent] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    tags: list[tuple[str, str]] = field(default_factory=list)  # (class, text)
    state: State | None = None
    band: str = ""
    y: float = 0.0

    @property
    def lines(self) -> int:
        return max(1, len(self.arrived) + len(self.asked) + bool(self.tags or self.told))


def diagram_page(
    recording: Recording,
    title: str,
    *,
    violation: str = "",
    invariant: str = "",
    facts: Sequence[tuple[str, str]] = (),
    texts: Sequence[tuple[str, str]] = (),
    rows_max: int = ROWS_MAX,
) -> str:
    """The whole page. `facts` are shown as name and value, `texts` (name, text) folded away below the diagram."""
    rows, left_out, before = _rows(recording.moments, rows_max)
    head = f"<h1>{escape(title)}</h1>\n<p>"
    if violation:
        head += f'<span class="verdict bad">{escape(invariant or "violation")}</span> '
        head += f'<span class="say">{escape(violation.removeprefix(invariant + ": "))}</span></p>\n'
    else:
        head += '<span class="verdict ok">every invariant held</span></p>\n'
    head += "".join(f'<p class="soft">{escape(name)}: <code>{escape(value)}</code></p>\n' for name, value in facts)
    svg = _Drawing(recording.members, rows, before).svg(violation)
    caption = (
        "Time goes down. A thick lane leads, an amber one is a candidate, a broken red one is down. The text of a "
        "message stands where it arrives; a red dashed arrow never does. Heartbeats that changed nothing are left out."
    )
    if left_out:
        caption += f" {left_out} earlier moments are not drawn."
    body = head + f'<figure><div class="scroll">{svg}</div><figcaption>{caption}</figcaption></figure>'
    for name, text in texts:
        body += f"\n<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
    return page(title, body, STYLE)


# ---------------------------------------------------------------------- which moments, and what they say


def _rows(moments: Sequence[Moment], rows_max: int) -> tuple[list[_Row], int, dict[NodeId, State]]:
    """The rows to draw, how many earlier ones there were, and where everybody stood before the first."""
    rows: list[_Row] = []
    cut: frozenset[tuple[NodeId, NodeId]] = frozenset()
    arrived: set[int] = set()
    for moment in moments:
        if isinstance(moment, Turn):
            arrived.update(id(sent) for sent in moment.arrived if not _idle(moment, sent))
    for moment in moments:
        match moment:
            case Links():
                if moment.cut != cut:
                    rows.append(_Row(moment.at, 0, band=_links_text(moment)))
                cut = moment.cut
            case Note():
                row = _row(rows, moment.at, moment.node)
                row.tags.append(("bad" if _is_end(moment.what) else "", moment.what))
                row.state = State() if _is_end(moment.what) else row.state
                if "starts" in moment.what:
                    row.state = State("follower")
            case Sent():
                if id(moment) in arrived or (moment.fate and not _is_heartbeat(moment.message)):
                    _row(rows, moment.at, moment.sender).sent.append(moment)
            case Turn():
                _add_turn(rows, moment)
    rows = [row for row in rows if row.band or row.arrived or row.asked or row.told or row.sent or row.tags]
    before: dict[NodeId, State] = {}
    first = max(0, len(rows) - rows_max)
    for row in rows[:first]:
        if row.state is not None:
            before[row.node] = row.state
    return rows[first:], first, before


def _row(rows: list[_Row], at: int, node: NodeId) -> _Row:
    """The row of this member at this moment: a new one, or the last one if it is of the same moment."""
    for row in reversed(rows[-6:]):
        if row.at == at and row.node == node:
            return row
        if row.at != at:
            break
    rows.append(_Row(at, node))
    return rows[-1]


def _add_turn(rows: list[_Row], turn: Turn) -> None:
    row = _row(rows, turn.at, turn.node)
    before, after = turn.before, turn.after
    row.arrived += [sent for sent in turn.arrived if not _idle(turn, sent)]
    for event in turn.events:
        match event:
            case ev.Submit(_, commands):
                row.asked.append(f"{len(commands)} command{'s' * (len(commands) != 1)}")
            case ev.ReadBarrier():
                row.asked.append("read")
            case raft.ConfigChangeRequested(_, changes):
                steps = ", ".join(f"{change.kind.value} {change.member.id}" for change in changes)
                row.tags.append(("", f"change: {steps or 'leave joint'}"))
            case raft.TransferRequested(_, target):
                row.tags.append(("", f"transfer to {target or 'anybody'}"))
            case raft.PeerDown(peer):
                row.tags.append(("", f"hears that {peer} is down"))
            case raft.SnapshotWritten(snapshot):
                row.tags.append(("disk", f"snapshot [{snapshot.term}.{snapshot.index}]"))
            case ev.SnapshotLoaded(snapshot):
                row.tags.append(("disk", f"restores [{snapshot.term}.{snapshot.index}]"))
    if not turn.finished:
        row.tags.append(("bad", "✗ here"))
        return
    row.state = after
    if after.role != before.role or (after.term != before.term and after.role != "follower"):
        kind = {"leader": "leader", "candidate": "candidate", "precandidate": "candidate"}.get(after.role, "")
        if after.role != "follower" or before.role != "down":
            row.tags.append((kind, f"{after.role} t{after.term}"))
    elif after.term != before.term:
        row.tags.append(("", f"t{after.term}"))
    for effect in turn.effects:
        match effect:
            case raft.Persist(entries=entries) if entries:
                row.tags.append(("disk", f"log {notation.entries_text(entries)}"))
            case ev.Completed(_, results):
                row.told.append(f"{len(results)} answered")
            case ev.Failed(_, count, error):
                row.told.append(f"{count} failed: {type(error).__name__}")
            case ev.ReadsReady(tokens):
                row.told.append(f"{len(tokens)} read{'s' * (len(tokens) != 1)} answered")
            case ev.ReadsFailed(_, error):
                row.told.append(f"read failed: {type(error).__name__}")
            case raft.Halt(reason):
                row.tags.append(("bad", f"halts: {reason}"))
    if after.commit != before.commit:
        row.tags.append(("commit", f"commit {after.commit}"))


def _is_heartbeat(message: ms.Message) -> bool:
    return isinstance(message, ms.Heartbeat | ms.HeartbeatReply)


def _idle(turn: Turn, sent: Sent) -> bool:
    """A heartbeat or its answer, in a turn that changed nothing that a reader would miss."""
    if not _is_heartbeat(sent.message) or not turn.finished:
        return False
    same = (turn.before.role, turn.before.term, turn.before.commit) == (
        turn.after.role,
        turn.after.term,
        turn.after.commit,
    )
    return same and not any(isinstance(effect, ev.ReadsReady) for effect in turn.effects)


def _is_end(what: str) -> bool:
    return any(word in what for word in ("killed", "loses power", "crashes", "stops", "halts", "lost with"))


def _links_text(links: Links) -> str:
    """`cut 1 | 2 3` where the members fall apart so, else the silenced directions."""
    if not links.cut:
        return "all links mended"
    groups: list[list[NodeId]] = []
    for node in links.members:
        for group in groups:
            if all((node, other) not in links.cut and (other, node) not in links.cut for other in group):
                group.append(node)
                break
        else:
            groups.append([node])
    place = {node: number for number, group in enumerate(groups) for node in group}
    whole = {(a, b) for a in links.members for b in links.members if place[a] != place[b]}
    if whole == set(links.cut):
        return "cut " + " | ".join(notation.ids_text(group) for group in groups)
    pairs = sorted(links.cut)
    shown = ", ".join(f"{a}->{b}" for a, b in pairs[:8]) + (f" and {len(pairs) - 8} more" if len(pairs) > 8 else "")
    return f"cut {shown}"


# ---------------------------------------------------------------------- drawing


class _Drawing:
    def __init__(self, members: Sequence[NodeId], rows: list[_Row], before: dict[NodeId, State]) -> None:
        self._rows = rows
        self._before = before
        self._has_clients = any(row.asked or row.told for row in rows)
        seen = {row.node for row in rows if row.node} | {sent.to for row in rows for sent in row.sent}
        self._members = [node for node in members if node in seen] or list(members)
        self._lane = max(LANE_MIN, min(LANE_MAX, 1250 // max(1, len(self._members))))
        self._clients_x = LEFT + CLIENTS / 2
        first = LEFT + (CLIENTS if self._has_clients else 0) + self._lane / 2
        self._x = {node: first + at * self._lane for at, node in enumerate(self._members)}
        self._width = first + (len(self._members) - 0.5) * self._lane + 10
        y = float(TOP)
        for row in rows:
            row.y = y + LINE / 2
            y += LINE * row.lines + 5
        self._bottom = y

    def svg(self, violation: str) -> str:
        height = self._bottom + (44 if violation else 14)
        out = [f'<svg width="{self._width:.0f}" height="{height:.0f}" role="img" aria-label="sequence diagram">']
        out += self._bands()
        out += self._lives()
        out += self._arrows()
        out += self._texts()
        if violation:
            out += self._end(violation)
        out.append("</svg>")
        return "".join(out)

    def _bands(self) -> list[str]:
        return [
            f'<rect class="band" x="{LEFT - 8}" y="{row.y - LINE / 2:.0f}" width="{self._width - LEFT:.0f}" '
            f'height="{LINE}" rx="4"/><text class="bandtext" x="{LEFT}" y="{row.y + 4:.0f}">{escape(row.band)}</text>'
            for row in self._rows
            if row.band
        ]

    def _lives(self) -> list[str]:
        out: list[str] = []
        for node, x in self._x.items():
            state = self._before.get(node, State())
            out.append(f'<text class="head" text-anchor="middle" x="{x:.0f}" y="24">member {node}</text>')
            if state.role != "down":
                text = f"{state.role} t{state.term}, commit {state.commit}"
                out.append(f'<text class="soft" text-anchor="middle" x="{x:.0f}" y="42">{text}</text>')
            since = TOP - 12.0
            for row in self._rows:
                if row.node != node or row.state is None or row.state.role == state.role:
                    continue
                out.append(_life(x, since, row.y, state.role))
                state, since = row.state, row.y
            out.append(_life(x, since, self._bottom, state.role))
        if self._has_clients:
            out.append(f'<text class="head" text-anchor="middle" x="{self._clients_x:.0f}" y="24">clients</text>')
            out.append(_life(self._clients_x, TOP - 12.0, self._bottom, "clients"))
        return out

    def _arrows(self) -> list[str]:
        out: list[str] = []
        arrivals = {id(sent): (row, place) for row in self._rows for place, sent in enumerate(row.arrived)}
        sends = {id(sent): row for row in self._rows for sent in row.sent}
        for row in self._rows:
            for sent in row.sent:
                if sent.to not in self._x or id(sent) in arrivals:
                    continue
                if sent.fate:
                    out += self._lost(row, sent)
        for row in self._rows:
            for place, sent in enumerate(row.arrived):
                x, y = self._x[row.node], row.y + place * LINE
                origin = sends.get(id(sent))
                start_x = self._x.get(sent.sender)
                if start_x is None:
                    continue
                start_y = origin.y if origin is not None else max(TOP - 12.0, y - 2.5 * LINE)
                out.append(_arrow(start_x, start_y, x, y, _kind(sent.message)))
            for place, _ in enumerate(row.asked, len(row.arrived)):
                y = row.y + place * LINE
                out.append(_arrow(self._clients_x, y - 4, self._x[row.node], y, "client"))
            if row.told:
                y = row.y + (row.lines - 1) * LINE
                out.append(_arrow(self._x[row.node], y, self._clients_x, y + 4, "client"))
        return out

    def _lost(self, row: _Row, sent: Sent) -> list[str]:
        x, to = self._x[row.node], self._x[sent.to]
        stop = x + (to - x) * (0.38 if abs(to - x) > self._lane else 0.5)
        y = row.y + 8
        return [
            f'<path class="arrow lost" d="M{x:.0f} {row.y:.0f}L{stop:.0f} {y:.0f}"/>',
            f'<text x="{stop:.0f}" y="{y + 4:.0f}" text-anchor="middle" style="fill:var(--bad)">✗</text>',
        ]

    def _texts(self) -> list[str]:
        out: list[str] = []
        room = int((self._lane - 26) / CHAR)
        last = -1
        for row in self._rows:
            if row.at // 100_000 != last:
                last = row.at // 100_000
                out.append(f'<text class="time" x="{LEFT - 14}" y="{row.y + 4:.0f}" text-anchor="end">'
                           f"{row.at / 1e6:.1f} ms</text>")  # fmt: skip
            if row.band:
                continue
            x = self._x[row.node]
            for place, sent in enumerate(row.arrived):
                from_left = self._x.get(sent.sender, 0) < x
                out.append(_label(x, row.y + place * LINE, _short(_message(sent.message), room), from_left))
            for place, text in enumerate(row.asked, len(row.arrived)):
                out.append(_label(x, row.y + place * LINE, text, True))
            y = row.y + (row.lines - 1) * LINE
            out += [_label(x, y, text, True) for text in row.told]
            at = x + 10
            for kind, text in row.tags:
                shown = _short(text, room)
                width = len(shown) * CHAR + 12
                out.append(
                    f'<rect class="tag {kind}" x="{at:.0f}" y="{y - 8:.0f}" width="{width:.0f}" height="16" rx="8"/>'
                    f'<text class="plain" x="{at + 6:.0f}" y="{y + 4:.0f}">{escape(shown)}</text>'
                )
                at += width + 4
        return out

    def _end(self, violation: str) -> list[str]:
        y = self._bottom + 6
        out = [f'<rect class="end" x="{LEFT - 8}" y="{y:.0f}" width="{self._width - LEFT:.0f}" height="28" rx="6"/>']
        named = dict.fromkeys(int(name) for name in re.findall(r"members? (\d+)", violation))
        out += [
            f'<circle class="dot" cx="{self._x[node]:.0f}" cy="{y:.0f}" r="6"/>' for node in named if node in self._x
        ]
        text = _short(violation, int((self._width - LEFT - 20) / 7.2))
        out.append(f'<text class="endtext" x="{LEFT + 6}" y="{y + 19:.0f}">✗ {escape(text)}</text>')
        return out


def _life(x: float, top: float, bottom: float, role: str) -> str:
    return f'<path class="life {role}" d="M{x:.0f} {top:.0f}V{bottom:.0f}"/>'


def _arrow(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line with a tip at its end."""
    direction = 1 if x2 >= x1 else -1
    tip = x2 - 4 * direction
    return (
        f'<path class="arrow {kind}" d="M{x1:.0f} {y1:.0f}L{tip:.0f} {y2:.0f}"/>'
        f'<path class="tip {kind}" d="M{tip:.0f} {y2:.0f}l{-7 * direction} -3.4v6.8z"/>'
    )


def _label(x: float, y: float, text: str, left: bool) -> str:
    if left:
        return f'<text x="{x - 14:.0f}" y="{y - 3:.0f}" text-anchor="end">{escape(text)}</text>'
    return f'<text x="{x + 14:.0f}" y="{y - 3:.0f}">{escape(text)}</text>'


def _kind(message: ms.Message) -> str:
    if _is_heartbeat(message):
        return "quiet"
    return "vote" if isinstance(message, ms.RequestVote | ms.RequestVoteReply | ms.TimeoutNow) else ""


def _message(message: ms.Message) -> str:
    """The message as the notation prints it, with the long names and what is implied left out."""
    match message:
        case ms.AppendEntries():
            after = f"{message.prev_log_term}.{message.prev_log_index}"
            entries = notation.entries_text(message.entries)
            return f"Append {entries} after {after} c{message.commit_index}"
        case ms.AppendEntriesReply():
            text = f"ok {message.index}" if message.success else f"refused {message.index}"
            return f"AppendReply {text}"
        case _:
            return notation.message_text(message)


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def states_text(recording: Recording) -> str:
    """Where every member stood at the end, a line each."""
    last: dict[NodeId, Any] = {}
    for moment in recording.moments:
        if isinstance(moment, Turn):
            last[moment.node] = moment.after
    return "\n".join(f"{node}  {s.role} t{s.term} commit {s.commit} last {s.last}" for node, s in sorted(last.items()))
