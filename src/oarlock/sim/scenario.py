"""The scenario language: a golden file says what happens to a group, and what the group did is recorded below.

A line that begins with `>` acts: commands, separated by `;`. Indented lines below it are recorded; `bless` rewrites
them.
Everything else (comments, blank lines) stays as it is. `docs/reference/scenarios.md` lists the commands.

    # A leader cut off from its majority cannot commit. Raft 5.3
    > group 1 2 3; elect 1; settle
        1    leader         t1  log 1.1      commit 1
        2,3  follower       t1  log 1.1      commit 1
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, get_args

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.roles import Follower
from oarlock.raft.types import Configuration, MemberInfo, MemberRole, NodeId
from oarlock.sim import notation
from oarlock.sim.failures import Violation
from oarlock.sim.invariants import Invariants
from oarlock.sim.stage import MILLISECOND, Actor, FixedRandom, Packet, Stage

CAMPAIGN_TRIES_MAX = 64  # timers that may fire before the one of the election
MESSAGE_TYPES: dict[str, type[object]] = {t.__name__: t for t in get_args(ms.Message)}
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_DURATION = re.compile(r"^(\d+)(ms|s)$")


class ScenarioError(Exception):
    """A scenario cannot be read or carried out. `line` and `column` count from 1."""

    def __init__(self, name: str, line: int, column: int, what: str) -> None:
        super().__init__(f"{name}:{line}:{column}: {what}")
        self.line = line
        self.column = column


class _Refused(Exception):
    """A command is wrong; `word` is the place of the word at fault (0: the command itself)."""

    def __init__(self, word: int, what: str) -> None:
        super().__init__(what)
        self.word = word


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    column: int
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Selector:
    """Which messages: `1->2`, `*->2`, optionally with a message type."""

    sender: NodeId  # 0: anybody
    to: NodeId
    kind: type[object] | None

    def matches(self, packet: Packet) -> bool:
        return (
            self.sender in (0, packet.sender)
            and self.to in (0, packet.to)
            and (self.kind is None or isinstance(packet.message, self.kind))
        )


@dataclass(slots=True)
class _Sent:
    sender: NodeId
    text: str
    note: str
    to: list[NodeId] = field(default_factory=list)


def split(line: str, name: str = "scenario", number: int = 1) -> list[list[Word]]:
    """The commands of one acting line, as words with their columns. Raises `ScenarioError` for an open quote."""
    commands: list[list[Word]] = [[]]
    position = 1  # after the ">"
    while position < len(line):
        char = line[position]
        if char.isspace():
            position += 1
        elif char == ";":
            commands.append([])
            position += 1
        elif char == '"':
            found = _WORD.match(line, position)
            if found is None or found.group(1) is None:
                raise ScenarioError(name, number, position + 1, "a quoted text without its end: add a closing quote")
            text = found.group(1).replace('\\"', '"').replace("\\\\", "\\")
            commands[-1].append(Word(text, position + 1, quoted=True))
            position = found.end()
        else:
            end = position
            while end < len(line) and not line[end].isspace() and line[end] not in ';"':
                end += 1
            commands[-1].append(Word(line[position:end], position + 1))
            position = end
    return [command for command in commands if command]


class Player:
    """Carries out the commands of one scenario on a stage of its own."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.invariants: Invariants | None = None
        self.fractions: dict[NodeId, FixedRandom] = {}
        self.sent: list[_Sent] = []
        self.notes: list[str] = []
        self.holds: list[Selector] = []
        self.held: list[Packet] = []
        self.copies: dict[str, Packet] = {}
        self.tokens = 0
        self.questions: dict[int, str] = {}
        self.show_state = False
        self.show_messages = True
        self.printed: Configuration | None = None

    # -- the frame

    def act(self, commands: list[list[Word]], name: str, number: int) -> list[str]:
        """Carry out the commands of one line. Returns what is to be recorded. Raises `ScenarioError` or `Violation`."""
        self.sent.clear()
        self.notes.clear()
        self.show_state, self.show_messages = False, True
        for words in commands:
            attribute = _COMMANDS.get(words[0].text)
            if attribute is None:
                what = f"unknown command {words[0].text!r}; known are {', '.join(sorted(_COMMANDS))}"
                raise ScenarioError(name, number, words[0].column, what)
            method: Callable[[list[Word]], None] = getattr(self, attribute)
            if self.stage is None and words[0].text != "group":
                raise ScenarioError(name, number, words[0].column, "the first command of a scenario is `group`")
            try:
                method(words)
            except _Refused as refused:
                column = words[min(refused.word, len(words) - 1)].column
                raise ScenarioError(name, number, column, f"{words[0].text}: {refused}") from refused
            except Violation as violation:
                violation.add_note(f"in {name}:{number}, at `{' '.join(w.text for w in words)}`")
                raise
        return self._record()

    def _record(self) -> list[str]:
        lines: list[str] = []
        if self.show_messages:
            rows = [(f"{s.sender}->{','.join(map(str, s.to))}", s.text, s.note) for s in self.sent]
            width = max((len(r[0]) for r in rows), default=0)
            for route, text, note in rows:
                lines.append(f"    {route:<{width}}  {text}" + (f"   {note}" if note else ""))
        lines.extend(f"    {note}" for note in self.notes)
        if self.show_state:
            lines.extend(self._states())
        return lines

    def _states(self) -> list[str]:
        stage = self._stage
        texts: dict[str, list[NodeId]] = {}
        logs = {n: notation.ledger_text(a.mirror if a.up else a.disk.durable) for n, a in stage.actors.items()}
        width = max(len(t) for t in logs.values())
        configurations = {
            a.mirror.configuration for a in stage.actors.values() if a.up and a.mirror.configuration.members
        }
        odd = len(configurations) > 1
        for node in sorted(stage.actors):
            actor = stage.actors[node]
            texts.setdefault(self._state(actor, logs[node], width, odd), []).append(node)
        margin = max(len(",".join(map(str, nodes))) for nodes in texts.values())
        lines = [f"    {','.join(map(str, nodes)):<{margin}}  {text}".rstrip() for text, nodes in texts.items()]
        if len(configurations) == 1:
            only = configurations.pop()
            if only != self.printed:
                lines.append(f"    {notation.configuration_text(only)}")
            self.printed = only
        else:
            self.printed = None
        return lines

    @staticmethod
    def _state(actor: Actor, log: str, width: int, odd: bool) -> str:
        if actor.raft is None:
            role, term, commit = "removed" if actor.halted else "down", actor.disk.durable.hard_state.term, "-"
        else:
            role, term, commit = notation.role_text(actor.raft), actor.raft.current_term, str(actor.raft.commit_index)
        text = f"{role:<13}  t{term}  log {log:<{width}}  commit {commit}"
        if actor.raft is not None:
            if actor.raft.last_applied != actor.raft.commit_index:
                text += f"  applied {actor.raft.last_applied}"
            if actor.disk.durable.last_index != actor.mirror.last_index or actor.disk.pending:
                text += f"  durable {notation.ledger_text(actor.disk.durable)}"
            if odd and actor.mirror.configuration.members:
                text += f"  {notation.configuration_text(actor.mirror.configuration)}"
        return text

    @property
    def _stage(self) -> Stage:
        assert self.stage is not None
        return self.stage

    def _on_sent(self, packet: Packet, is_cut: bool) -> bool:
        text = notation.message_text(packet.message)
        keep = not is_cut and any(hold.matches(packet) for hold in self.holds)
        note = "cut" if is_cut else "held" if keep else ""
        last = self.sent[-1] if self.sent else None
        if (
            last is not None
            and (last.sender, last.text, last.note) == (packet.sender, text, note)
            and packet.to not in last.to
        ):
            last.to.append(packet.to)
        else:
            self.sent.append(_Sent(packet.sender, text, note, [packet.to]))
        if keep:
            self.held.append(packet)
        return keep

    def _answers(self) -> None:
        for node, actor in sorted(self._stage.actors.items()):
            for answer in actor.answers:
                if not isinstance(answer, ev.Appended):
                    about = self.questions.get(answer.token, "")
                    self.notes.append(f"{node} {notation.answer_text(answer)}" + (f" ({about})" if about else ""))
            actor.answers.clear()

    # -- arguments

    def _fail(self, word: int, what: str) -> NoReturn:
        raise _Refused(word, what)

    def _node(self, words: list[Word], at: int) -> NodeId:
        """The member that word `at` names; any member of the stage."""
        if at >= len(words):
            self._fail(at - 1, "the id of a member is missing here")
        text = words[at].text
        if not text.isdigit():
            self._fail(at, f"{text!r} is not the id of a member")
        node = int(text)
        if node not in self._stage.actors:
            self._fail(at, f"there is no member {node}; the stage has {notation.ids_text(self._stage.actors)}")
        return node

    def _up(self, words: list[Word], at: int) -> NodeId:
        node = self._node(words, at)
        if not self._stage.actors[node].up:
            self._fail(at, f"member {node} is down; `restart {node}` first")
        return node

    def _end(self, words: list[Word], count: int) -> None:
        if len(words) > count:
            self._fail(count, f"did not expect {words[count].text!r}")

    def _duration(self, words: list[Word], at: int) -> int:
        if at >= len(words):
            self._fail(at - 1, "a duration is missing here, such as 300ms or 2s")
        found = _DURATION.match(words[at].text)
        if found is None:
            self._fail(at, f"{words[at].text!r} is not a duration such as 300ms or 2s")
        return int(found.group(1)) * (MILLISECOND if found.group(2) == "ms" else 1000 * MILLISECOND)

    def _selector(self, words: list[Word], at: int) -> tuple[Selector, int]:
        """A selector at word `at`, and the place of the next word."""
        if at >= len(words):
            self._fail(at - 1, "which messages? Say 1->2 or *->2, with or without a message type")
        found = re.match(r"^(\d+|\*)->(\d+|\*)$", words[at].text)
        if found is None:
            self._fail(at, f"{words[at].text!r} is not a route such as 1->2 or *->2")
        ends = [0 if end == "*" else int(end) for end in found.groups()]
        for end in ends:
            if end and end not in self._stage.actors:
                self._fail(at, f"there is no member {end}; the stage has {notation.ids_text(self._stage.actors)}")
        kind = None
        if at + 1 < len(words) and words[at + 1].text in MESSAGE_TYPES:
            kind = MESSAGE_TYPES[words[at + 1].text]
            at += 1
        elif at + 1 < len(words) and words[at + 1].text[:1].isupper():
            self._fail(at + 1, f"{words[at + 1].text!r} is not a message type; known are {', '.join(MESSAGE_TYPES)}")
        return Selector(ends[0], ends[1], kind), at + 1

    def _find(self, words: list[Word], selector: Selector, *, newest: bool = False) -> Packet:
        """The oldest (or newest) matching message, held ones first."""
        matching = [p for p in [*self.held, *self._stage.network] if selector.matches(p)]
        if not matching:
            self._fail(1, f"no such message is on its way ({len(self.held) + len(self._stage.network)} others are)")
        return max(matching, key=lambda p: p.number) if newest else min(matching, key=lambda p: p.number)

    def _take(self, packet: Packet) -> None:
        if packet in self.held:
            self.held.remove(packet)
        else:
            self._stage.network.remove(packet)

    def _token(self, about: str) -> int:
        self.tokens += 1
        self.questions[self.tokens] = about
        return self.tokens

    def _finish(self, node: NodeId) -> None:
        """Let a member's own disk and machine finish what they may; messages stay on their way."""
        while node in self._stage.actors and self._stage.actors[node].up and self._stage.run_completions(node):
            pass
        self._answers()

    # -- commands: the group

    def group(self, words: list[Word]) -> None:
        if self.stage is not None:
            self._fail(0, "there is a group already")
        infos: list[MemberInfo] = []
        options: dict[str, Any] = {}
        chunk, incarnations = 16, False
        for at, word in enumerate(words[1:], 1):
            if word.text.isdigit() or word.text.startswith(("learner:", "witness:")):
                role, _, number = word.text.rpartition(":")
                number, _, priority = number.partition("@")
                if not number.isdigit():
                    self._fail(at, f"{word.text!r} is not a member")
                kind = {"": MemberRole.VOTER, "learner": MemberRole.LEARNER, "witness": MemberRole.WITNESS}[role]
                infos.append(MemberInfo(id=int(number), role=kind, priority=int(priority or 1)))
            elif re.match(r"^\d+@\d+$", word.text):
                number, _, priority = word.text.partition("@")
                infos.append(MemberInfo(id=int(number), priority=int(priority)))
            elif "=" in word.text:
                key, _, value = word.text.partition("=")
                if key == "chunk" and value.isdigit():
                    chunk = int(value)
                    continue
                if key == "incarnations" and value in ("on", "off"):
                    incarnations = value == "on"
                    continue
                options[key.replace("-", "_")] = self._value(at, key, value)
            else:
                what = "is neither a member (3, learner:4, witness:5, 2@7 for a priority) nor an option (key=value)"
                self._fail(at, f"{word.text!r} {what}")
        if not infos or len({i.id for i in infos}) != len(infos):
            self._fail(0, "a group has at least one member, and each once")
        configuration = Configuration.of(*infos)
        self.printed = configuration
        try:
            self.stage = Stage(
                configuration, rng=self._rng, options=options, chunk_bytes=chunk, incarnations=incarnations, start=False
            )
            self.invariants = Invariants(self.stage.actors)
            self.stage.observer = self.invariants
            for node in configuration.ids:
                self.stage.start(node)
        except (TypeError, ValueError) as error:
            self._fail(0, f"the core refuses these options: {error}")
        self.stage.sent_hook = self._on_sent
        self.stage.event_hook = self.notes.append

    def _value(self, at: int, key: str, value: str) -> object:
        """An int or a bool. (Not annotated as that: to a compiler a bool would do as an int.)"""
        if value in ("on", "off"):
            return value == "on"
        if value.isdigit():
            return int(value)
        found = _DURATION.match(value)
        if found is None:
            self._fail(at, f"option {key}: {value!r} is none of on, off, a number, a duration")
        return int(found.group(1)) * (MILLISECOND if found.group(2) == "ms" else 1000 * MILLISECOND)

    def _rng(self, node: NodeId) -> FixedRandom:
        return self.fractions.setdefault(node, FixedRandom(0.25 + 0.0625 * (node % 10)))

    def join(self, words: list[Word]) -> None:
        """`join 4`: a process with an empty disk that waits to be told of its group."""
        if len(words) < 2 or not words[1].text.isdigit():
            self._fail(1, "the id of the new member is missing")
        self._end(words, 2)
        node = int(words[1].text)
        if node in self._stage.actors:
            self._fail(1, f"member {node} is on the stage already")
        self._stage.add(node, initial=Configuration())
        self._answers()

    def timeout(self, words: list[Word]) -> None:
        """`timeout 2 10%`: where in its range member 2 draws its election timeouts from now on."""
        node = self._node(words, 1)
        found = re.match(r"^(\d{1,2})%$", words[2].text) if len(words) > 2 else None
        if found is None:
            self._fail(2, "a percentage below 100 is missing here")
        self._end(words, 3)
        self._rng(node).fraction = int(found.group(1)) / 100

    # -- commands: time and elections

    def wait(self, words: list[Word]) -> None:
        duration = self._duration(words, 1)
        self._end(words, 2)
        self._stage.wait(duration)
        self._answers()
        self.show_state, self.show_messages = True, False

    def tick(self, words: list[Word]) -> None:
        """`tick 2 300ms`: time passes for one member only."""
        node, left = self._up(words, 1), self._duration(words, 2)
        self._end(words, 3)
        actor = self._stage.actors[node]
        while actor.raft is not None and (delta := max(actor.raft.next_deadline() - actor.clock, 0)) <= left:
            left -= delta
            actor.clock += delta
            self._stage.submit(node, ev.TimePassed())
            self._finish(node)
        actor.clock += left

    def campaign(self, words: list[Word]) -> None:
        node = self._up(words, 1)
        self._end(words, 2)
        self._time_out(node)
        self._finish(node)

    def _time_out(self, node: NodeId) -> None:
        """Let the others forget their leader (diss. 4.2.3) without timing out, and one member's election timer fire."""
        stage = self._stage
        actor = stage.actors[node]
        patience = stage.options.get("election_timeout_ns", 1000 * MILLISECOND)
        for other in stage.actors.values():
            if other.raft is not None and other.id != node and isinstance(other.raft.role, Follower):
                other.clock = max(other.clock, min(other.raft.next_deadline() - 1, other.clock + patience))
        raft = actor.core
        if raft.is_leader:
            self._fail(1, f"member {node} leads")
        raft.take_traces()
        for _ in range(CAMPAIGN_TRIES_MAX):
            actor.clock = max(actor.clock, raft.next_deadline())
            stage.submit(node, ev.TimePassed())
            if any(trace.event in ("became_precandidate", "became_candidate") for trace in raft.take_traces()):
                return
        self._fail(1, f"member {node} does not campaign (a learner, a witness, priority 0?)")

    def elect(self, words: list[Word]) -> None:
        node = self._up(words, 1)
        self._end(words, 2)
        self._time_out(node)
        self._stage.settle()
        self._answers()
        self.show_messages = False
        if not self._stage.actors[node].is_leader:
            self._fail(1, f"member {node} did not win; use `campaign` for an election that fails")

    def settle(self, words: list[Word]) -> None:
        self._end(words, 1)
        self._stage.settle()
        self._answers()
        self.show_state, self.show_messages = True, False

    def state(self, words: list[Word]) -> None:
        self._end(words, 1)
        self.show_state = True

    def messages(self, words: list[Word]) -> None:
        """Record the messages of this line although a state follows."""
        self._end(words, 1)
        self.show_messages = True

    def run(self, words: list[Word]) -> None:
        """As `settle`, recording the messages instead of the state."""
        self._end(words, 1)
        self._stage.settle()
        self._answers()

    # -- commands: clients

    def propose(self, words: list[Word]) -> None:
        node = self._up(words, 1)
        if len(words) < 3:
            self._fail(1, "at least one payload is missing")
        proposals = [ev.Proposed(self._token(w.text), w.text.encode()) for w in words[2:]]
        self._stage.submit(node, *proposals)
        self._finish(node)

    def burst(self, words: list[Word]) -> None:
        """`burst 1 20 10`: twenty proposals of ten bytes, one turn each."""
        node = self._up(words, 1)
        if len(words) < 4 or not words[2].text.isdigit() or not words[3].text.isdigit():
            self._fail(2, "say how many proposals and how many bytes each")
        self._end(words, 4)
        for _ in range(int(words[2].text)):
            self._stage.submit(node, ev.Proposed(self._token("burst"), b"x" * int(words[3].text)))
        self._finish(node)

    def read(self, words: list[Word]) -> None:
        node = self._up(words, 1)
        about = words[2].text if len(words) > 2 else ""
        confirmed = len(words) > 3 and words[3].text == "confirmed"
        self._end(words, 4 if confirmed else 3)
        self._stage.submit(node, ev.ReadRequested(self._token(about), confirmed))
        self._finish(node)

    def transfer(self, words: list[Word]) -> None:
        """`transfer 1 2`, asked of member 1; `transfer 1` to whom it finds most suitable."""
        node = self._up(words, 1)
        target = 0
        if len(words) > 2:
            if not words[2].text.isdigit():
                self._fail(2, f"{words[2].text!r} is not the id of a member")
            target = int(words[2].text)
        self._end(words, 3)
        self._stage.submit(node, ev.TransferRequested(self._token(""), target))
        self._finish(node)

    def change(self, words: list[Word]) -> None:
        """`change 1 +4 +learner:5 -3 6@0 stay promote`: all steps at once, asked of member 1."""
        node = self._up(words, 1)
        steps: list[ev.ConfigChange] = []
        auto_leave, promote = True, False
        kinds = {
            "": ev.ChangeKind.ADD_VOTER,
            "learner": ev.ChangeKind.ADD_LEARNER,
            "witness": ev.ChangeKind.ADD_WITNESS,
        }
        for at, word in enumerate(words[2:], 2):
            if word.text == "stay":
                auto_leave = False
            elif word.text == "promote":
                promote = True
            elif found := re.match(r"^\+(?:(learner|witness):)?(\d+)$", word.text):
                steps.append(ev.ConfigChange(kinds[found.group(1) or ""], MemberInfo(id=int(found.group(2)))))
            elif found := re.match(r"^-(\d+)$", word.text):
                steps.append(ev.ConfigChange(ev.ChangeKind.REMOVE, MemberInfo(id=int(found.group(1)))))
            elif found := re.match(r"^(\d+)@(\d+)$", word.text):
                info = MemberInfo(id=int(found.group(1)), priority=int(found.group(2)))
                steps.append(ev.ConfigChange(ev.ChangeKind.UPDATE, info, set_incarnation=False, set_context=False))
            elif found := re.match(r"^(\d+)=new-disk$", word.text):
                actor = self._stage.actors.get(int(found.group(1)))
                if actor is None:
                    self._fail(at, f"there is no member {found.group(1)}")
                info = MemberInfo(id=actor.id, incarnation=actor.incarnation)
                steps.append(ev.ConfigChange(ev.ChangeKind.UPDATE, info, set_priority=False, set_context=False))
            else:
                steps_known = "+4, +learner:4, +witness:4, -4, 4@0, 4=new-disk, stay, promote"
                self._fail(at, f"{word.text!r} is not a step: {steps_known}")
        if promote:
            steps = [replace(step, member=replace(step.member, promote_when_ready=True)) for step in steps]
        request = ev.ConfigChangeRequested(self._token(""), tuple(steps), auto_leave=auto_leave)
        self._stage.submit(node, request)
        self._finish(node)

    # -- commands: faults

    def cut_(self, words: list[Word]) -> None:
        """`cut 1 | 2 3` parts the group; `cut 1->2` silences one direction."""
        if len(words) == 2 and "->" in words[1].text:
            selector, _ = self._selector(words, 1)
            for a in self._stage.actors:
                for b in self._stage.actors:
                    if a != b and selector.sender in (0, a) and selector.to in (0, b):
                        self._stage.cut_link(a, b)
            return
        sides: list[list[NodeId]] = [[]]
        for at, word in enumerate(words[1:], 1):
            if word.text == "|":
                sides.append([])
            else:
                sides[-1].append(self._node(words, at))
        if not sides[0]:
            self._fail(0, "who is cut off from whom? Say `cut 1 | 2 3`, or `cut 1->2` for one direction")
        self._stage.partition(*sides)

    def heal(self, words: list[Word]) -> None:
        self._end(words, 1)
        self._stage.heal()
        self._answers()

    def crash(self, words: list[Word]) -> None:
        node = self._up(words, 1)
        self._end(words, 2)
        self._stage.crash(node)

    def power_loss(self, words: list[Word]) -> None:
        node = self._up(words, 1)
        self._end(words, 2)
        self._stage.crash(node, keep=0)

    def restart(self, words: list[Word]) -> None:
        node = self._node(words, 1)
        self._end(words, 2)
        if self._stage.actors[node].up:
            self._fail(1, f"member {node} is running")
        self._stage.start(node)
        self._answers()

    def wipe(self, words: list[Word]) -> None:
        """An empty disk for a member that is down: it comes back with another incarnation."""
        node = self._node(words, 1)
        self._end(words, 2)
        if self._stage.actors[node].up:
            self._fail(1, f"member {node} is running; `crash {node}` first")
        self._stage.wipe(node, initial=Configuration())

    def notice(self, words: list[Word]) -> None:
        """`notice 2 1`: member 2 learns that the process of member 1 is gone."""
        node, peer = self._up(words, 1), self._node(words, 2)
        self._end(words, 3)
        self._stage.submit(node, ev.PeerDown(peer))
        self._finish(node)

    def disk(self, words: list[Word]) -> None:
        """`disk 1 sick` and `disk 1 well`."""
        node = self._up(words, 1)
        if len(words) < 3 or words[2].text not in ("sick", "well"):
            self._fail(2, "say `sick` or `well`")
        self._end(words, 3)
        self._stage.submit(node, ev.DiskHealth(words[2].text == "sick"))
        self._finish(node)

    def persist(self, words: list[Word]) -> None:
        """`persist hold 1`, `persist step 1` (one fsync returns), `persist release 1`."""
        what = words[1].text if len(words) > 1 else ""
        if what not in ("hold", "step", "release"):
            self._fail(1, "say `hold`, `step` or `release`, then a member")
        node = self._up(words, 2)
        self._end(words, 3)
        if what == "step":
            if not self._stage.sync(node):
                self._fail(2, f"no fsync of member {node} is pending")
        else:
            self._stage.actors[node].hold_syncs = what == "hold"
        self._finish(node)

    def apply(self, words: list[Word]) -> None:
        """`apply hold 1` and `apply release 1`."""
        what = words[1].text if len(words) > 1 else ""
        if what not in ("hold", "release"):
            self._fail(1, "say `hold` or `release`, then a member")
        node = self._up(words, 2)
        self._end(words, 3)
        self._stage.actors[node].hold_applies = what == "hold"
        self._finish(node)

    def snapshot(self, words: list[Word]) -> None:
        node = self._up(words, 1)
        self._end(words, 2)
        self._stage.take_snapshot(node)
        self._finish(node)

    def mark(self, words: list[Word]) -> None:
        """The machine's own store is durable up to what it applied: a snapshot without a file."""
        node = self._up(words, 1)
        self._end(words, 2)
        self._stage.take_snapshot(node, mark=True)
        self._finish(node)

    # -- commands: single messages

    def deliver(self, words: list[Word]) -> None:
        selector, at = self._selector(words, 1)
        newest = at < len(words) and words[at].text == "newest"
        self._end(words, at + newest)
        packet = self._find(words, selector, newest=newest)
        self._take(packet)
        if not self._stage.deliver(packet):
            self._fail(1, f"member {packet.to} is down")
        self._finish(packet.to)

    def drop(self, words: list[Word]) -> None:
        selector, at = self._selector(words, 1)
        everything = at < len(words) and words[at].text == "all"
        self._end(words, at + everything)
        self._take(self._find(words, selector))
        while everything and any(selector.matches(p) for p in [*self.held, *self._stage.network]):
            self._take(self._find(words, selector))

    def duplicate(self, words: list[Word]) -> None:
        selector, at = self._selector(words, 1)
        self._end(words, at)
        self._stage.network.append(self._find(words, selector))

    def copy(self, words: list[Word]) -> None:
        """`copy 1->2 AppendEntries as old`: keep a copy for a later `replay old`."""
        selector, at = self._selector(words, 1)
        if len(words) != at + 2 or words[at].text != "as":
            self._fail(min(at, len(words) - 1), "say `as` and a name for the copy")
        self.copies[words[at + 1].text] = self._find(words, selector)

    def replay(self, words: list[Word]) -> None:
        if len(words) < 2 or words[1].text not in self.copies:
            self._fail(1, f"there is no such copy; known are {', '.join(sorted(self.copies)) or 'none'}")
        self._end(words, 2)
        packet = self.copies[words[1].text]
        if not self._stage.deliver(packet):
            self._fail(1, f"member {packet.to} is down")
        self._finish(packet.to)

    def hold(self, words: list[Word]) -> None:
        """Matching messages, those on their way included, wait until `release`."""
        selector, at = self._selector(words, 1)
        self._end(words, at)
        self.holds.append(selector)
        for packet in [p for p in self._stage.network if selector.matches(p)]:
            self._stage.network.remove(packet)
            self.held.append(packet)

    def release(self, words: list[Word]) -> None:
        """Let go of held messages: all, or those of one selector. `newest first` turns their order around."""
        selector, at = (
            self._selector(words, 1) if len(words) > 1 and "->" in words[1].text else (Selector(0, 0, None), 1)
        )
        backwards = [w.text for w in words[at:]] == ["newest", "first"]
        self._end(words, at + 2 * backwards)
        self.holds = [] if selector == Selector(0, 0, None) else [h for h in self.holds if h != selector]
        go = sorted((p for p in self.held if selector.matches(p)), key=lambda p: p.number, reverse=backwards)
        self.held = [p for p in self.held if not selector.matches(p)]
        self._stage.network.extend(go)


_COMMANDS = {
    name.rstrip("_").replace("_", "-"): name
    for name in (
        "group", "join", "timeout", "wait", "tick", "campaign", "elect", "settle", "state", "messages", "run",
        "propose", "burst", "read", "transfer", "change", "cut_", "heal", "crash", "power_loss", "restart", "wipe",
        "notice",
        "disk", "persist", "apply", "snapshot", "mark", "deliver", "drop", "duplicate", "copy", "replay", "hold",
        "release",
    )
}  # fmt: skip
COMMANDS = tuple(sorted(_COMMANDS))


def play(text: str, name: str = "scenario") -> str:
    """Carry out a scenario and return it with its recorded lines as they came out.

    Raises `ScenarioError` (with line and column) for a scenario that cannot be read or carried out, and `Violation`
    when
    an invariant breaks.
    """
    player = Player()
    lines: list[str] = []
    recorded = False  # whether the line before was an acting or a recorded one
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(">"):
            lines.append(line.rstrip())
            lines.extend(player.act(split(line, name, number), name, number))
            recorded = True
        elif recorded and line.startswith("    "):
            continue
        else:
            recorded = False
            if line[:1].isspace() and line.strip():
                raise ScenarioError(name, number, 1, "an indented line belongs below a line with `>`")
            if line.strip() and not line.startswith("#"):
                raise ScenarioError(
                    name, number, 1, "a line begins with `>`, with `#`, or is a recorded one (four spaces)"
                )
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"
