"""How the report looks: one style sheet, light and dark by the reader's setting, no file from elsewhere."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1c1e21; --soft: #646a73; --line: #e3e4e1; --good: #1a7f4b; --bad: #b3372f; --accent: #2f6fb3;
  --series-0: #2f6fb3; --series-1: #c9722b; --series-2: #2c8c74; --series-3: #8d5bb0; --series-4: #70757d;
  --kb-0: #2b6fd6; --kb-1: #c2571a; --kb-2: #1f8a5b; --kb-3: #8a3fb8; --kb-4: #a8871a; --kb-5: #b8305f; --kb-6: #18808f; --kb-7: #6a6f7a;
  --kb-stop: #b0b4ba; --partly: #9a6a00; --wash: #f0f2f4; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14161a; --card: #1d2025; --ink: #e8e8e6; --soft: #9aa0a9; --line: #31353c; --good: #58c58d; --bad: #f08a80; --accent: #79b2ee;
  --series-0: #79b2ee; --series-1: #eba365; --series-2: #5fcbb0; --series-3: #c49be2; --series-4: #9aa0a9;
  --kb-0: #7fb0ff; --kb-1: #f2a06b; --kb-2: #66cf9f; --kb-3: #cf9af0; --kb-4: #dcc163; --kb-5: #f28bae; --kb-6: #6fcfdd; --kb-7: #b3b8c4;
  --kb-stop: #6b717b; --partly: #e0b34a; --wash: #262a30; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 52px 0 6px; letter-spacing: -.005em; }
p { margin: 6px 0 14px; max-width: 70ch; } .soft { color: var(--soft); }
.facts { max-width: none; } .contents { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; } a { color: var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin: 26px 0 8px; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 16px; } .tile b { display: block; font-size: 28px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; } .tile em { font-style: normal; font-size: 14px; }
.good, .tile .good { color: var(--good); } .bad, .tile .bad { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { padding: 8px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 500; font-size: 13.5px; }
td small { color: var(--soft); font-size: 13px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 14px; margin: 14px 0; }
figure { margin: 0; padding: 12px 14px; } figure.wide { margin: 14px 0; } figcaption { font-size: 14px; font-weight: 600; margin-bottom: 6px; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 13px; fill: var(--ink); } svg .tick { font-size: 11px; fill: var(--soft); }
svg .grid, svg .track { stroke: var(--line); stroke-width: 1; } svg polyline { fill: none; } svg .line { stroke-width: 2; stroke-linejoin: round; }
svg .raw { stroke-width: 1; opacity: .25; } svg .interval { stroke-width: 5; opacity: .45; stroke-linecap: round; }
.legend { display: flex; gap: 2px 14px; margin-top: 4px; flex-wrap: wrap; font-size: 13px; color: var(--soft); min-height: 20px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
details { font-size: 14px; } summary { cursor: pointer; color: var(--soft); padding: 3px 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px; overflow-x: auto; font-size: 13px; }
"""
