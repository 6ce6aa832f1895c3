"""What the HTML page looks like and does: one stylesheet and one script, both inside of the page."""

CSS = """
:root { --ink: #1c2330; --soft: #5b6575; --line: #dde2ea; --paper: #ffffff; --band: #f6f8fb; --left: #0b6e99;
  --gone: #e3c9a8; --link: #0b5f86; --alarm: #b3261e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ef; --soft: #9aa5b5; --line: #313a48; --paper: #14181f; --band: #1b212b; --left: #4fb0d8;
    --gone: #6b5538; --link: #7cc4e6; --alarm: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
.lead { font-size: 19px; line-height: 1.4; margin: 6px 0 10px; max-width: 62em; }
.warning { color: var(--alarm); border: 1px solid var(--alarm); border-radius: 8px; padding: 8px 14px;
  font-weight: 650; }
.kicker { color: var(--soft); margin: 0 0 22px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(166px, 1fr)); gap: 12px; margin: 0 0 26px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; background: var(--band); }
.card .name { color: var(--soft); font-size: 13px; }
.card .left { font-size: 28px; font-weight: 650; line-height: 1.3; }
.card .left small { font-size: 14px; font-weight: 400; color: var(--soft); }
.card.slot { border-style: dashed; background: none; }
.card.slot .left { font-size: 18px; font-weight: 400; color: var(--soft); }
.card.slot .span { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 11px; overflow-wrap: anywhere; }
.card .span { font-size: 13px; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 0 0 10px; font-size: 14px; }
nav a { color: var(--link); text-decoration: none; }
nav a:hover { text-decoration: underline; }
details.section { border-top: 1px solid var(--line); padding: 14px 0 8px; }
details.section > summary { cursor: pointer; font-size: 18px; font-weight: 650; }
summary .count { color: var(--soft); font-weight: 400; font-size: 14px; margin-left: 6px; }
.about { color: var(--soft); margin: 6px 0 10px; }
.scroll { overflow-x: auto; max-height: 460px; overflow-y: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 12px; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > td { border-bottom: 0; }
tbody tr:nth-child(even) { background: var(--band); }
th { position: sticky; top: 0; background: var(--paper); z-index: 1; font-weight: 600; color: var(--soft);
  white-space: nowrap; box-shadow: 0 1px 0 var(--line); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--left); border-radius: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12.5px;
  overflow-wrap: break-word; min-width: 200px; }
td.text { min-width: 130px; }
td.bar { width: 170px; min-width: 90px; }
.bar div { height: 10px; border-radius: 3px; background: var(--gone); margin-top: 5px; min-width: 2px; }
.bar div div { background: var(--left); margin: 0; min-width: 0; }
.legend { font-size: 13px; color: var(--soft); margin: 0 0 8px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 4px 0 12px; }
.legend i:first-child { margin-left: 0; }
svg.strip { display: block; width: 150px; height: 14px; margin-top: 3px; }
svg.rates { display: block; margin-top: 3px; }
svg.rates .taken { fill: var(--ink); }
svg.strip rect { fill: var(--gone); }
svg.strip path { fill: var(--left); }
td details summary { cursor: pointer; color: var(--link); }
td details ul { margin: 4px 0; padding-left: 18px; }
input.filter { font: inherit; font-size: 14px; color: var(--ink); background: var(--paper); width: 260px;
  max-width: 100%; padding: 4px 9px; border: 1px solid var(--line); border-radius: 6px; margin: 0 0 8px; }
@media (max-width: 640px) { main { padding: 18px 12px 40px; } h1 { font-size: 21px; } th, td { padding: 5px 8px; }
  td.name { min-width: 150px; } .card .left { font-size: 23px; } .cards { grid-template-columns: 1fr 1fr; gap: 8px; } }
@media print { .scroll { max-height: none; overflow: visible; } input.filter { display: none; } }
"""

SCRIPT = """
"use strict";
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(number) ? text : number;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        if (typeof x === "number" && typeof y === "number") return x - y;
        return String(x).localeCompare(String(y), undefined, { numeric: true });
      });
      if (!up) rows.reverse();
      body.append(...rows);
    });
  });
}
for (const field of document.querySelectorAll("input.filter")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of document.getElementById(field.dataset.table).tBodies[0].rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
for (const link of document.querySelectorAll("nav a"))
  link.addEventListener("click", () => { document.querySelector(link.hash).open = true; });
"""
