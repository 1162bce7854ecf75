"""The style of the HTML report: light or dark, narrow or wide, on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfc; --ink: #202124; --faint: #5f6368; --grid: #dadce0;
  --band: #f1f2f4; --shade: #cfe0ff; --good: #006d4f; --fair: #8a5a00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #e8eaed; --faint: #a6abb2; --grid: #3c4043;
  --band: #202225; --shade: #24406e; --good: #5fd3ad; --fair: #f0c060; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1640px; margin: 0 auto; padding: 20px; }
h1 { margin: 0; font-size: 26px; } h2 { margin: 32px 0 8px; font-size: 20px; }
h3 { margin: 18px 0 4px; font-size: 15px; }
p { margin: 4px 0; } .lead, section > p { color: var(--faint); }
bdi { unicode-bidi: isolate; overflow-wrap: anywhere; }
.warnings { margin: 14px 0; padding: 10px 12px 10px 30px; border-left: 4px solid var(--fair); background: var(--band); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 10px; margin: 16px 0; }
.cards div { padding: 10px 12px; background: var(--band); border-radius: 6px; }
dt { color: var(--faint); }
dd { margin: 0; color: var(--faint); }
dd b { display: block; font-size: 22px; color: var(--ink); }
.wide { overflow-x: auto; }
.gantt { display: block; width: 100%; min-width: 1000px; height: auto; font-family: system-ui, sans-serif; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide table { width: 100%; font-size: 13px; }
th, td { padding: 4px 8px; text-align: right; vertical-align: top; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--grid); }
.wide th, .wide td { padding: 4px 6px; }
thead th { color: var(--faint); white-space: normal; vertical-align: bottom; }
th:nth-child(4), td.text { text-align: start; white-space: normal; min-width: 260px; overflow-wrap: anywhere; }
td.text p { margin: 0; unicode-bidi: plaintext; } .said { font-weight: 600; } .why { color: var(--fair); }
.dubbed { color: var(--good); } .error { color: var(--bad); }
.too_late, .unsupported, .captioned { color: var(--fair); }
.no_speech, .passed { color: var(--faint); }
.columns { display: flex; flex-wrap: wrap; gap: 8px 40px; }
.pairs th, .pairs td { text-align: start; white-space: normal; }
figure { margin: 0; } img { max-width: 100%; height: auto; border: 1px solid var(--grid); }
.spans { columns: 260px; margin: 4px 0; padding-left: 20px; }
@media print { :root { --paper: #ffffff; --ink: #000000; --faint: #444444; --grid: #cccccc; --band: #f3f3f3;
  --shade: #cfe0ff; --good: #006d4f; --fair: #8a5a00; --bad: #b3261e; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } @page { size: landscape; margin: 10mm; }
  body { font-size: 10px; } main { padding: 0; } .wide { overflow: visible; } .wide table { font-size: 8px; }
  .gantt { min-width: 0; } tr, img, .gantt, .cards div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  thead { display: table-header-group; } td.text { min-width: 140px; }
  section > p { break-after: avoid; } img { max-height: 180mm; } th, td, .wide th, .wide td { padding: 2px 4px; } }
"""
