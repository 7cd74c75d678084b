"""The one style sheet of every page: calm type, aligned numbers, light and dark, screen and paper.

Colours are variables, so that pictures (`charts`) follow the reader's light or dark setting.
The language switch is two radio buttons and the selector `:has`; it needs no script.
"""

__all__ = ["STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #22262b; --soft: #666d75; --faint: #9aa1a9;
  --rule: #e4e1db; --grid: #eceae5; --accent: #0f6674; --wash: #eef5f5;
  --warn: #8a5a00; --warn-wash: #fdf5e3; --bad: #a8323a; --bad-wash: #fbeeee;
  --good: #2c7046; --good-wash: #edf6f0;
  --series-1: #1f6f8b; --series-2: #cf6f2e; --series-3: #4d8a57; --series-4: #8b5c9e;
  --series-5: #b8474f; --series-6: #6f7680; --heat: 31,111,139; --heat-ink: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --card: #1c2024; --ink: #e4e6e8; --soft: #a2a9b1; --faint: #737b84;
    --rule: #30363c; --grid: #282d32; --accent: #6cc3cf; --wash: #1b2a2e;
    --warn: #e5bb66; --warn-wash: #2b2519; --bad: #ee8f95; --bad-wash: #2f1f21;
    --good: #84cb9c; --good-wash: #1b2a21;
    --series-1: #62b4d0; --series-2: #eb9a60; --series-3: #85c08e; --series-4: #c09ad0;
    --series-5: #e8868d; --series-6: #a2a9b1; --heat: 98,180,208; --heat-ink: #10161a;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.65; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", "Source Han Sans SC", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 56px 32px 96px; }
html:has(#language-en:checked) [lang="zh"] { display: none; }
html:has(#language-zh:checked) [lang="en"] { display: none; }
.language { position: absolute; top: 20px; right: 32px; font-size: 13px; }
.language label { cursor: pointer; color: var(--faint); padding: 4px 8px; border-radius: 6px; }
.language input { position: absolute; opacity: 0; pointer-events: none; }
.language label:has(:checked) { color: var(--ink); background: var(--grid); }
.language label:has(:focus-visible) { outline: 2px solid var(--accent); }
h1, h2, h3 { line-height: 1.3; font-weight: 650; letter-spacing: -0.01em; }
h1 { font-size: 34px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 23px; margin: 72px 0 16px; }
h3 { font-size: 17px; margin: 32px 0 10px; }
p { margin: 0 0 14px; max-width: 46em; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
small, .soft { color: var(--soft); }
.eyebrow { color: var(--accent); font-size: 13px; letter-spacing: 0.06em; margin: 0 0 6px; }
.lead { font-size: 18px; color: var(--soft); }
nav.contents { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 28px 0 0; font-size: 14px; }
.headline { display: flex; flex-wrap: wrap; gap: 20px 56px; margin: 36px 0 32px; }
.headline div { min-width: 110px; }
.headline b { display: block; font-size: 38px; font-weight: 600; line-height: 1.2;
  letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.headline div:first-child b { color: var(--accent); }
.headline span.what { color: var(--soft); font-size: 14px; }
.scroll { overflow-x: auto; margin: 0 0 20px; }
table { border-collapse: collapse; font-size: 14.5px; line-height: 1.45;
  font-variant-numeric: tabular-nums lining-nums; }
table.wide { width: 100%; }
th, td { padding: 8px 12px; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 2px; }
th:last-child, td:last-child { padding-right: 2px; }
thead th { font-weight: 500; font-size: 13px; color: var(--soft); vertical-align: bottom;
  white-space: nowrap; border-bottom-color: var(--faint); }
tbody th { font-weight: 600; }
td.r, th.r { text-align: right; white-space: nowrap; }
tbody tr:hover > * { background: var(--wash); }
td b { font-weight: 650; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr));
  gap: 20px; margin: 8px 0 20px; }
figure { margin: 0; padding: 18px 20px 14px; background: var(--card); border-radius: 10px;
  border: 1px solid var(--rule); break-inside: avoid; }
figure svg { display: block; margin: 0 auto; width: 100%; height: auto; }
figure svg + svg { margin-top: 32px; }
figcaption { color: var(--soft); font-size: 13.5px; margin-top: 10px; }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
div.wide { margin: 8px 0 20px; }
.note { border-left: 3px solid var(--accent); background: var(--wash); padding: 12px 18px;
  border-radius: 0 8px 8px 0; margin: 0 0 16px; font-size: 15px; max-width: 52em; }
.note p:last-child, .note ul:last-child { margin-bottom: 0; }
.note ul { margin: 0; padding-left: 18px; }
.note.warn { border-color: var(--warn); background: var(--warn-wash); }
.note.bad { border-color: var(--bad); background: var(--bad-wash); }
.badge { display: inline-block; padding: 2px 12px; border-radius: 99px; font-size: 13.5px;
  font-weight: 600; white-space: nowrap; color: var(--soft); background: var(--grid); }
.badge.good { color: var(--good); background: var(--good-wash); }
.badge.warn { color: var(--warn); background: var(--warn-wash); }
.badge.bad { color: var(--bad); background: var(--bad-wash); }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 24px; margin: 0 0 20px;
  font-size: 14.5px; font-variant-numeric: tabular-nums; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
details { margin: 0 0 14px; }
summary { cursor: pointer; color: var(--accent); font-size: 15px; padding: 4px 0; }
code, pre { font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas,
    "Noto Sans Mono CJK SC", monospace; font-size: 13.5px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 14px 18px; overflow-x: auto; line-height: 1.55; margin: 0 0 20px; }
article { border-top: 1px solid var(--rule); padding: 12px 0 0; margin: 56px 0 0; }
.pair { display: grid; gap: 12px 40px; align-items: start; margin-top: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); }
article h2, article h3:first-of-type { margin-top: 20px; }
footer { margin-top: 88px; padding-top: 18px; border-top: 1px solid var(--rule);
  color: var(--faint); font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 48px 18px 64px; } h1 { font-size: 27px; } .language { right: 18px; }
  dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: 8px; }
}
@media print {
  :root { --paper: #fff; } body { font-size: 11pt; } main { max-width: none; padding: 0; }
  .language, nav.contents { display: none; } h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; } details::details-content { content-visibility: visible; }
}
"""
