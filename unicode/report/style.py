"""The look of the page: colours for light and dark, one column on a phone."""

STYLE = """\
:root {
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d2129; --soft: #5b6472; --line: #dcdad3; --accent: #b4470f;
  --right: #17703a; --wrong: #b3261e;
  --s0: #b4470f; --s1: #1f5fa8; --s2: #17703a; --s3: #7a3fa0; --s4: #9a7400; --s5: #5b6472;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --card: #1e2127; --ink: #e8e6e1; --soft: #a2a9b4; --line: #353a43; --accent: #f0935a;
    --right: #6fcf8e; --wrong: #ff8f85;
    --s0: #f0935a; --s1: #7db2f0; --s2: #6fcf8e; --s3: #c79be8; --s4: #e0be55; --s5: #a2a9b4;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 40px; }
h1 { font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.15; margin: 0 0 8px; letter-spacing: -0.02em; }
h2 { font-size: 1.4rem; margin: 0 0 12px; letter-spacing: -0.01em; }
h3 { font-size: 1.05rem; margin: 28px 0 8px; }
section { padding: 30px 0 14px; border-top: 1px solid var(--line); scroll-margin-top: 8px; }
.lead { font-size: 1.1rem; color: var(--soft); margin: 0 0 22px; max-width: 70ch; }
p { max-width: 75ch; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 14px 0 18px; }
a { color: var(--accent); text-underline-offset: 3px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 12px; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  display: flex; flex-direction: column; }
.figure b { font-size: 1.3rem; line-height: 1.3; white-space: nowrap; font-variant-numeric: tabular-nums; }
.figure small, figcaption, .note, caption { color: var(--soft); font-size: 0.86rem; }
.missing { border-left: 3px solid var(--line); padding: 4px 0 4px 12px; color: var(--soft); }
.scroll { overflow-x: auto; margin: 12px 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; font-size: 0.86rem; color: var(--soft); }
td.number { text-align: right; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; font-size: 0.82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-size: 0.88em; overflow-wrap: anywhere; }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--accent); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 16px; margin: 14px 0; align-items: start; }
.gallery.pairs { grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
.gallery.charts { grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
.gallery.words { grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: 6px; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
img { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--card); }
img.pixels { image-rendering: pixelated; }
img.map { border: 1px solid var(--line); border-radius: 4px; max-width: 720px; }
.side { display: flex; gap: 6px; }
.side > div { flex: 1; min-width: 0; }
.side small { color: var(--soft); }
.right { color: var(--right); font-weight: 600; }
.wrong { color: var(--wrong); font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; }
th.number { text-align: right; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .series { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.c0 { stroke: var(--s0); } .c1 { stroke: var(--s1); } .c2 { stroke: var(--s2); }
.c3 { stroke: var(--s3); } .c4 { stroke: var(--s4); } .c5 { stroke: var(--s5); }
.keyed { white-space: nowrap; margin-right: 12px; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.k0 { background: var(--s0); } .k1 { background: var(--s1); } .k2 { background: var(--s2); }
.k3 { background: var(--s3); } .k4 { background: var(--s4); } .k5 { background: var(--s5); }
.bar { display: block; height: 8px; margin-top: 8px; border-radius: 4px; background: var(--accent); min-width: 2px; }
td.bars { width: 30%; min-width: 90px; }
table.wordgrid { font: 12px/1.3 ui-monospace, Menlo, Consolas, monospace; margin: 0; }
table.wordgrid td { min-width: 2em; border: 1px solid var(--line); padding: 3px 6px; text-align: center; white-space: pre; }
"""
