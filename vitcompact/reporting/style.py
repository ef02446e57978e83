"""How pages look: one style sheet for light and dark, narrow and wide, and for print. Nothing is loaded."""

from __future__ import annotations

SERIES = 8
"""Colours that tell series apart: classes `s0` to `s7`."""

_LIGHT = """
--page: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #d1d9e0; --card: #f6f8fa; --scale: #0b5394;
--accent: #c2410c; --good: #116329; --on-scale: #ffffff;
--s0: #2563eb; --s1: #ea7317; --s2: #16936a; --s3: #a03fb8; --s4: #c79a00; --s5: #d6336c; --s6: #0e8aa8; --s7: #6b7280;
"""
_DARK = """
--page: #0d1117; --ink: #e6edf3; --muted: #9aa5b1; --line: #30363d; --card: #161b22; --scale: #6cb6ff;
--accent: #ff9a5c; --good: #56d364; --on-scale: #0d1117;
--s0: #6ea8fe; --s1: #ffa657; --s2: #4cc9a0; --s3: #d08cf0; --s4: #e3b341; --s5: #ff7ba8; --s6: #56c8e4; --s7: #9aa5b1;
"""

_RULES = """
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--page);
  max-width: 1160px; margin: 0 auto; padding: 1.2em 16px 3em; overflow-wrap: anywhere; }
h1 { font-size: 1.5em; line-height: 1.25; margin: .2em 0; }
h2 { font-size: 1.15em; margin: 2.2em 0 .3em; padding-top: .6em; border-top: 1px solid var(--line); }
h3 { font-size: 1em; margin: 1em 0 .3em; }
p { max-width: 46em; margin: .3em 0 .8em; color: var(--muted); }
p.lead { margin-top: 0; } p.told { color: var(--accent); font-weight: 600; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, monospace; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25em 1.1em .25em 0; text-align: left; vertical-align: top; overflow-wrap: normal; }
th { border-bottom: 1px solid var(--line); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr:hover td { background: var(--card); }
.wide { overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 10px; margin: 1em 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7em .9em; }
.card .what { color: var(--muted); font-size: .86em; }
.card .value { font-size: 1.6em; font-weight: 650; line-height: 1.3; }
.card .change { font-weight: 600; } .card .from, .card .within { color: var(--muted); font-size: .86em; }
.card .from, .card .within { display: block; }
.grid { display: flex; flex-wrap: wrap; gap: 14px 22px; align-items: flex-start; }
svg { max-width: 100%; height: auto; display: block; }
svg.chart { width: 100%; max-width: 500px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); } svg .title { font-weight: 600; font-size: 12px; }
svg .small { font-size: 10px; fill: var(--muted); } svg .marked { fill: var(--accent); font-weight: 600; }
svg .cell { font-size: 10px; text-anchor: middle; } svg .light { fill: var(--on-scale); }
svg .axis { stroke: var(--line); } svg .heat { fill: var(--scale); } svg .dot { fill: var(--accent); }
svg .ring { fill: none; stroke: var(--accent); stroke-width: 2.5; }
svg .curve { fill: none; stroke: var(--s0); stroke-width: 2; } svg .thin { fill: none; stroke-width: 1.3; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: .4em 0 .8em; font-size: .88em;
  color: var(--muted); }
.legend i { display: inline-block; width: .85em; height: .85em;
  border-radius: 2px; margin-right: .4em; vertical-align: -1px; }
.bars { display: grid; grid-template-columns: minmax(5em, max-content) 1fr max-content; gap: 3px 10px; max-width: 900px;
  font-size: .88em; align-items: center; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 14px; background: var(--card); border-radius: 3px; overflow: hidden; }
.bar i { display: block; height: 100%; } .bars .total { text-align: right; color: var(--muted); }
details { border: 1px solid var(--line); border-radius: 8px; padding: .4em .8em; margin: .5em 0; }
summary { cursor: pointer; } summary code { font-weight: 600; } summary .muted { font-size: .9em; }
.muted { color: var(--muted); }
.maps { display: grid; grid-template-columns: minmax(4.6em, 7em) repeat(4, minmax(0, 92px)); gap: 3px 5px;
  align-items: center; font-size: .82em; margin: .5em 0; max-width: 540px; }
.maps img { width: 100%; display: block; border-radius: 3px; } .maps b { grid-column: 1 / -1; margin-top: .5em; }
img.plain { image-rendering: pixelated; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 14px; }
.strip figure { margin: 0; } .strip .row { display: flex; gap: 5px; }
.strip .row img { flex: 1 1 0; width: 0; min-width: 0; }
figcaption { font-size: .86em; color: var(--muted); }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 255px), 1fr)); gap: 10px; }
.answer { display: flex; gap: 10px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px; font-size: .88em; min-width: 0; }
.answer img { width: 84px; height: 84px; object-fit: contain; border-radius: 4px; flex: none; }
.answer div { min-width: 0; } .answer .changed { color: var(--accent); font-weight: 600; }
footer { margin-top: 2.5em; font-size: .9em; } footer pre { white-space: pre-wrap; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: .6em .8em; overflow-wrap: anywhere; }
@media (max-width: 480px) {
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); } .card .value { font-size: 1.3em; }
  .answers, .strip { grid-template-columns: minmax(0, 1fr); } .answers { gap: 6px; } .answer { padding: 6px; }
  .answer img { width: 56px; height: 56px; } td, th { padding-right: .55em; } table { font-size: .8em; }
  th, td.number:last-child { white-space: normal; } .grid { gap: 12px; } .grid svg { max-width: calc(50% - 6px); }
  td:not(.number):last-child { overflow-wrap: anywhere; } .many, .many tbody, .many tr { display: block; }
  .many tr { border-bottom: 1px solid var(--line); padding: .5em 0; } .many tr:first-child { display: none; }
  .many td { display: flex; justify-content: space-between; gap: 1em; padding-right: 0; }
  .many td:first-child { font-weight: 600; } .many td:empty { display: none; }
  .many td[data-name]::before { content: attr(data-name); color: var(--muted); font-weight: 400; }
}
@media print { h2 { break-after: avoid; } .card, figure, .answer { break-inside: avoid; } }
"""


def style_sheet() -> str:
    """The whole style sheet."""
    series = "".join(
        f".s{i} {{ background: var(--s{i}); }} svg .s{i} {{ fill: var(--s{i}); stroke: none; }} "
        f"svg .thin.s{i} {{ fill: none; stroke: var(--s{i}); }}\n"
        for i in range(SERIES)
    )
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}"
    return f":root {{ color-scheme: light dark; {_LIGHT} }}\n{dark}\n{_RULES}{series}"
