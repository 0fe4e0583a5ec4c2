"""How the report looks: one style sheet, light and dark by the reader's setting, no file from elsewhere."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1c1e21; --soft: #646a73; --line: #e3e4e1; --good: #1a7f4b; --bad: #b3372f; --accent: #2f6fb3;
  --series-0: #2f6fb3; --series-1: #c9722b; --series-2: #2c8c74; --series-3: #8d5bb0; --series-4: #70757d;
  --kb-0: #4f8fd0; --kb-1: #e0954f; --kb-2: #45a98f; --kb-3: #b9bcc0; --kb-4: #9c78bd; --wash: #f0f2f4; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14161a; --card: #1d2025; --ink: #e8e8e6; --soft: #9aa0a9; --line: #31353c; --good: #58c58d; --bad: #f08a80; --accent: #79b2ee;
  --series-0: #79b2ee; --series-1: #eba365; --series-2: #5fcbb0; --series-3: #c49be2; --series-4: #9aa0a9;
  --kb-0: #4a82ba; --kb-1: #c17d3f; --kb-2: #3b937c; --kb-3: #565b63; --kb-4: #8762a6; --wash: #262a30; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 52px 0 6px; letter-spacing: -.005em; }
p { margin: 6px 0 14px; max-width: 70ch; } .soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin: 26px 0 8px; }
.tile, .card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 14px 16px; } .tile b { display: block; font-size: 28px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; } .tile em { font-style: normal; font-size: 14px; }
.good { color: var(--good); } .bad { color: var(--bad); }
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
.legend { display: flex; gap: 14px; flex-wrap: wrap; font-size: 13px; color: var(--soft); min-height: 20px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
.card { padding: 16px 18px; margin: 14px 0; } .card header { display: flex; gap: 16px; align-items: flex-start; }
.card header img { width: 84px; image-rendering: pixelated; border-radius: 6px; border: 1px solid var(--line); }
.card h3 { font-size: 17px; margin: 0 0 2px; line-height: 1.35; overflow-wrap: anywhere; } .card header div { flex: 1; min-width: 0; }
.tag { display: inline-block; padding: 1px 9px; border-radius: 99px; font-size: 13px; background: var(--wash); color: var(--soft); }
.verdict { font-weight: 600; white-space: nowrap; }
ol.steps { list-style: none; margin: 12px 0 0; padding: 0; } ol.steps > li { padding: 8px 0 8px 16px; border-left: 2px solid var(--line); }
ol.steps p { margin: 2px 0; overflow-wrap: anywhere; max-width: none; }
.kb { display: inline-block; padding: 1px 9px; border-radius: 99px; font-size: 13px; color: #fff; background: var(--kb-3); }
.kb.text { background: var(--kb-0); } .kb.text_image { background: var(--kb-1); } .kb.table { background: var(--kb-2); }
.think { color: var(--soft); font-size: 14px; font-style: italic; }
details { font-size: 14px; } summary { cursor: pointer; color: var(--soft); padding: 3px 0; }
details ul { margin: 4px 0; padding-left: 20px; } details li { overflow-wrap: anywhere; }
.earlier { margin-top: 10px; padding-top: 8px; border-top: 1px dashed var(--line); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px; overflow-x: auto; font-size: 13px; }
"""
