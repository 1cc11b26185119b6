"""A violation as a picture: one lane for each client, the order that was found, and the operation without a place.

`violation_page` gives a self-contained HTML document. The horizontal axis is the order of events, not the clock: calls
and returns stand as far apart as their texts need.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from html import escape
from typing import Final

from oarlock.check.explain import SAID_MAX, Explanation, explain, operation_text, short, value_text
from oarlock.check.history import UNKNOWN, Operation
from oarlock.check.linearizability import Verdict
from oarlock.check.models import Model
from oarlock.check.page import page

SECTIONS_MAX: Final = 12  # violations (keys) that a page draws; the others are named
SHOWN_MAX: Final = 28  # operations of one picture; earlier ones are in the table only
OPEN_SHOWN_MAX: Final = 6  # operations of unknown outcome that are drawn although the order does not use them

_CHAR: Final = 7.3  # width of a character of the picture's font
_GAP: Final = 12.0
_LANE: Final = 46
_BAR: Final = 26
_LEFT: Final = 12
_NAMES: Final = 108  # width of the column of names, which stays when the picture scrolls

STYLE: Final = """
.bar{fill:var(--bar);stroke:var(--bar-edge)}.bar.open{stroke-dasharray:4 3}
.bar.bad{fill:var(--bad-soft);stroke:var(--bad);stroke-width:2}
.bar.block{fill:var(--warn-soft);stroke:var(--warn);stroke-width:2}
svg text.bad{fill:var(--bad);font-weight:700}.lane{fill:var(--lane)}
.path{fill:none;stroke:var(--accent);stroke-width:1.5;stroke-opacity:.55}
.dot{fill:var(--accent)}svg text.num{fill:var(--bg);font-size:10px;font-weight:700;text-anchor:middle}
.value{fill:none;stroke:var(--line)}.value.fits{fill:var(--warn-soft);stroke:var(--warn)}
.gone{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:3 4}
"""


def violation_page(verdict: Verdict, model: Model, name: str, about: str = "") -> str:
    """The page of a verdict. `name` says which history it is of, `about` in what form (both shown as they are)."""
    head = f"<h1>{escape(name)}</h1>\n"
    counts = f"{verdict.operations} operations on {verdict.keys} key{'s' * (verdict.keys != 1)}"
    if about:
        counts += f", {about}"
    if verdict.linearizable:
        head += f'<p><span class="verdict ok">linearizable</span> <span class="soft">{escape(counts)}</span></p>'
        head += '<p class="say">Every operation has a place in one order that is true to real time.</p>'
        return page(f"{name}: linearizable", head, STYLE)
    bad = len(verdict.violations)
    head += (
        f'<p><span class="verdict bad">not linearizable</span> <span class="soft">{escape(counts)}; '
        f"{bad} key{'s' * (bad != 1)} without an order</span></p>"
        if verdict.keys > 1
        else f'<p><span class="verdict bad">not linearizable</span> <span class="soft">{escape(counts)}</span></p>'
    )
    sections = [_section(explain(model, violation)) for violation in verdict.violations[:SECTIONS_MAX]]
    if bad > SECTIONS_MAX:
        rest = ", ".join(value_text(violation.key) for violation in verdict.violations[SECTIONS_MAX:])
        sections.append(f'<p class="soft">Not drawn, but without an order too: {escape(rest)}</p>')
    return page(f"{name}: not linearizable", head + "\n".join(sections), STYLE)


def _section(found: Explanation) -> str:
    violation = found.violation
    unplaced = violation.unplaced
    parts = []
    if violation.key is not None:
        parts.append(f"<h2>Key {escape(value_text(violation.key))}</h2>")
    parts.append(
        f'<p class="say">Process {unplaced.process}: <b class="mono">{escape(short(operation_text(unplaced)))}</b> '
        "has no place.</p>"
    )
    parts.append('<ul class="why">' + "".join(f"<li>{escape(reason)}</li>" for reason in found.reasons) + "</ul>")
    parts.append(_figure(found))
    parts.append(_tables(found))
    return "\n".join(parts)


def _tables(found: Explanation) -> str:
    rows = [
        f'<tr><td>{number}</td><td>{step.operation.process}</td><td class="mono">'
        f'{escape(operation_text(step.operation))}</td><td class="mono">{escape(value_text(step.state))}</td></tr>'
        for number, step in enumerate(found.order, 1)
    ]
    unplaced = found.violation.unplaced
    expected = " or ".join(dict.fromkeys(short(answer) for _, answer in found.states[:SAID_MAX] if answer))
    rows.append(
        f'<tr class="bad"><td>✗</td><td>{unplaced.process}</td><td class="mono">{escape(operation_text(unplaced))}'
        f"</td><td>{escape('should have been ' + expected if expected else 'no place')}</td></tr>"
    )
    return (
        f"<details{' open' * (len(rows) <= 16)}><summary>The longest part that has an order: {len(found.order)} "
        "operations</summary><table><tr><th>step</th><th>process</th><th>operation</th><th>value after it</th></tr>"
        + "".join(rows)
        + "</table></details>"
    )


# ---------------------------------------------------------------------- the picture


@dataclass(slots=True)
class _Bar:
    """One operation, and where its parts stand."""

    operation: Operation
    label: str
    start: float = -1.0
    end: float = -1.0  # -1: it stays open
    point: float = -1.0  # where it takes effect; -1: nowhere
    step: int = 0
    earlier: bool = False  # it began, or took effect, before the picture does


@dataclass(slots=True)
class _Layout:
    """Places from left to right; each at least `_GAP` behind the last."""

    x: float = float(_LEFT)
    bars: dict[int, _Bar] = field(default_factory=dict)  # by number of the operation
    values: list[tuple[float, int]] = field(default_factory=list)  # (from where, after how many steps)

    def next(self, at_least: float = 0.0) -> float:
        self.x = max(self.x + _GAP, at_least)
        return self.x


def _layout(found: Explanation) -> tuple[_Layout, int]:
    """Where everything stands, and how many operations are left out."""
    operations = list(found.violation.operations)
    numbers = {id(operation): number for number, operation in enumerate(operations)}
    steps = [numbers[id(step.operation)] for step in found.order]
    step_of = {number: at for at, number in enumerate(steps, 1)}
    bad = numbers[id(found.violation.unplaced)]
    ends = sorted((o.end, n) for n, o in enumerate(operations) if o.end is not None and (n in step_of or n == bad))
    shown = {n for _, n in ends[-SHOWN_MAX:]}
    opened = [n for n, o in enumerate(operations) if n not in shown and n != bad and _is_open(o, operations[bad])]
    used = [n for n in opened if n in step_of]
    shown |= set(used[-OPEN_SHOWN_MAX:]) | set([n for n in opened if n not in step_of][-OPEN_SHOWN_MAX:])
    layout = _Layout()
    events: list[tuple[float, int, int]] = []
    for number, operation in enumerate(operations):
        if number not in shown:
            continue
        layout.bars[number] = _Bar(operation, short(operation_text(operation)), step=step_of.get(number, 0))
        events.append((operation.start, 0, number))
        if operation.end is not None:
            events.append((operation.end, 1, number))
    events.sort()
    # Everything that took effect before the first return that is drawn belongs to what came before the picture.
    first = next((n for _, is_return, n in events if is_return and n in step_of), None)
    placed = 0
    if first is not None:
        before = [at for at, n in enumerate(steps[: step_of[first]], 1) if n not in shown]
        placed = max(before, default=0)
    for number in steps[:placed]:
        if number in layout.bars:
            layout.bars[number].earlier = True
    layout.values.append((float(_LEFT), placed))
    for _, is_return, number in events:
        bar = layout.bars[number]
        if not is_return:
            bar.start = layout.next()
            continue
        while number != bad and placed < bar.step:  # it returns: all up to it have taken effect
            step = layout.bars.get(steps[placed])
            placed += 1
            if step is not None:
                step.point = layout.next(step.start + 14.0)
                layout.values.append((step.point, placed))
        room = len(bar.label) * _CHAR
        bar.end = layout.next(max(bar.start + room + 18.0, bar.point + room + 24.0 if bar.point >= 0 else 0.0))
    return layout, len(operations) - len(shown)


def _is_open(operation: Operation, unplaced: Operation) -> bool:
    assert unplaced.end is not None
    return operation.result is UNKNOWN or (operation.end is not None and operation.end > unplaced.end)


def _figure(found: Explanation) -> str:
    layout, left_out = _layout(found)
    bars = sorted(layout.bars.values(), key=lambda bar: bar.start)
    lanes = {process: at for at, process in enumerate(sorted({bar.operation.process for bar in bars}))}
    width = layout.x + 150.0
    top = 18
    bottom = top + len(lanes) * _LANE
    height = bottom + 54
    names = [f'<svg class="names" width="{_NAMES}" height="{height}">']
    out = [f'<svg width="{width:.0f}" height="{height}" role="img" aria-label="history">']
    for process, lane in lanes.items():
        y = top + lane * _LANE
        if lane % 2 == 0:
            names.append(f'<rect class="lane" x="0" y="{y}" width="{_NAMES}" height="{_LANE}"/>')
            out.append(f'<rect class="lane" x="0" y="{y}" width="{width:.0f}" height="{_LANE}"/>')
        names.append(f'<text class="soft" x="14" y="{y + _LANE / 2 + 4}">process {process}</text>')
    names.append(f'<text class="soft" x="14" y="{bottom + 31}">the value</text></svg>')
    unplaced = found.violation.unplaced
    middle = {id(bar): top + lanes[bar.operation.process] * _LANE + _LANE / 2 for bar in bars}
    points = sorted((bar for bar in bars if bar.point >= 0), key=lambda bar: bar.step)
    if len(points) > 1:
        line = " ".join(f"{bar.point:.0f},{middle[id(bar)]:.0f}" for bar in points)
        out.append(f'<polyline class="path" points="{line}"/>')
    for bar in bars:
        out.append(_bar(bar, found, middle[id(bar)], width))
        if bar.operation is unplaced:
            out.append(f'<path class="gone" d="M{bar.end:.0f} {top}V{bottom + 40}"/>')
            out.append(f'<text class="bad" x="{bar.end + 8:.0f}" y="{middle[id(bar)] + 4}">✗ no place</text>')
    for bar in points:
        level = middle[id(bar)]
        out.append(f'<circle class="dot" cx="{bar.point:.0f}" cy="{level}" r="9"/>')
        out.append(f'<text class="num" x="{bar.point:.0f}" y="{level + 3.5}">{bar.step}</text>')
    out.append(_values(found, layout, bottom + 14, next(b.end for b in bars if b.operation is unplaced)))
    out.append("</svg>")
    caption = "Each bar is one call from request to answer; a numbered dot is where it takes effect in the order."
    if any(bar.end < 0 for bar in bars):
        caption += " A dashed bar had no answer."
    if found.blocker is not None:
        caption += " The amber bar must come before the red one."
    if left_out:
        caption += f" {left_out} earlier operations are not drawn."
    drawing = f'<div class="scroll" data-end>{"".join(names)}{"".join(out)}</div>'
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _bar(bar: _Bar, found: Explanation, middle: float, width: float) -> str:
    operation = bar.operation
    kind = "bar"
    if operation is found.violation.unplaced:
        kind += " bad"
    elif operation is found.blocker:
        kind += " block"
    left = 0.0 if bar.earlier and bar.start <= 60 else bar.start
    right = bar.end
    if right < 0:
        kind += " open"
        right = width - 20
    y = middle - _BAR / 2
    text_x = left + 8.0
    if bar.point >= 0 and bar.point - left < len(bar.label) * _CHAR + 20:
        text_x = bar.point + 14.0
    note = f" ({bar.step})" if bar.earlier else ""
    return (
        f'<g><title>{escape(str(operation))}</title><rect class="{kind}" x="{left:.0f}" y="{y}" rx="6" '
        f'width="{max(6.0, right - left):.0f}" height="{_BAR}"/>'
        f'<text x="{text_x:.0f}" y="{middle + 4}">{escape(bar.label + note)}</text></g>'
    )


def _values(found: Explanation, layout: _Layout, y: float, end: float) -> str:
    """The lane below: the value between any two steps."""
    out: list[str] = []
    states: list[Hashable] = [found.start, *(step.state for step in found.order)]
    runs: list[tuple[float, int, bool]] = []
    for x, placed in layout.values:
        fits = found.fits_after == placed
        if runs and states[runs[-1][1]] == states[placed]:
            runs[-1] = (runs[-1][0], placed, runs[-1][2] or fits)
        else:
            runs.append((x, placed, fits))
    for run, (x, placed, fits) in enumerate(runs):
        right = runs[run + 1][0] if run + 1 < len(runs) else end
        text = value_text(states[placed])
        room = max(1, int((right - x - 10) / _CHAR))
        shown = text if len(text) <= room else "…" + text[-(room - 1) :] if room > 2 else ""
        out.append(
            f'<g><title>{escape(text)}</title><rect class="value{" fits" * fits}" x="{x:.0f}" y="{y}" '
            f'width="{max(2.0, right - x):.0f}" height="26"/>'
            f'<text x="{x + 6:.0f}" y="{y + 17}">{escape(shown)}</text></g>'
        )
    return "".join(out)
