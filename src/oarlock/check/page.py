"""The frame of the pages that are drawn: one file, nothing from outside, readable in light and in dark."""

from __future__ import annotations

from html import escape
from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--bg:#fbfbf9;--fg:#1d2126;--soft:#5d6670;--line:#d8dbd6;--panel:#fff;--lane:#eef0ec;
--accent:#2563a8;--ok:#2d7d46;--bad:#c02626;--bad-soft:#fbe4e2;--warn:#a86400;--warn-soft:#fdf0d5;--bar:#cfe0f3;
--bar-edge:#7fa6d1;--violet:#7346a8}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e8ea;--soft:#9aa4ae;--line:#333a42;--panel:#1b2026;
--lane:#20262d;--accent:#78b0f0;--ok:#6cc48a;--bad:#ff7b72;--bad-soft:#451d1c;--warn:#e5b14f;--warn-soft:#3d2f10;
--bar:#24405e;--bar-edge:#4f7fb3;--violet:#b793ea}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1200px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:34px 0 6px}
.soft{color:var(--soft)}
.verdict{display:inline-block;padding:1px 10px;border-radius:99px;font-weight:600;font-size:14px}
.verdict.bad{background:var(--bad-soft);color:var(--bad)}.verdict.ok{color:var(--ok);border:1px solid var(--ok)}
.say{font-size:17px;margin:8px 0}.say b{color:var(--bad)}
ul.why{margin:4px 0 12px;padding-left:20px}
code,td.mono,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px}
figure{margin:12px 0;background:var(--panel);border:1px solid var(--line);border-radius:8px;overflow:hidden}
.scroll{display:flex;overflow:auto}.scroll svg{display:block;flex:none}
.scroll svg.names{position:sticky;left:0;background:var(--panel);border-right:1px solid var(--line)}
figcaption{padding:8px 14px 10px;color:var(--soft);font-size:13px;border-top:1px solid var(--line)}
table{border-collapse:collapse;width:100%;font-size:14px;background:var(--panel);border:1px solid var(--line)}
th{text-align:left;font-weight:600;color:var(--soft)}th,td{padding:4px 10px;border-bottom:1px solid var(--line)}
td.mono{white-space:nowrap}
tr.bad td{background:var(--bad-soft);color:var(--bad);font-weight:600}
details>summary{cursor:pointer;color:var(--accent);margin:8px 0}
pre{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow-x:auto;
font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
svg text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:var(--fg)}
svg .soft{fill:var(--soft)}svg .axis{stroke:var(--line)}
"""

# The end of a long picture is where it goes wrong: begin there.
_SCROLL: Final = "for(const f of document.querySelectorAll('.scroll[data-end]'))f.scrollLeft=f.scrollWidth"


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML document. `title` is text, `body` and `style` are markup."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
        f"<body><main>\n{body}\n</main><script>{_SCROLL}</script></body></html>\n"
    )
