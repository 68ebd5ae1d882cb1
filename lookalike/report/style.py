"""The style and the one script of a report."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

# Colours of classes and curves: those of Okabe and Ito (2008), which the colour-blind tell apart, made readable on both
# grounds. Marks also differ in shape, curves in dashes.
_CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d1f")
_DASHES = ("none", "6 3", "2 3", "8 3 2 3", "1 4", "12 4")

_CLASSES = "\n".join(
    f".k{number} {{ --k: {_CLASS_COLOURS[number % 7]}; --round: {'50%' if number < 7 else '1px'} }}\n"
    f".map:has(input[value=k{number}]:checked) .plane .dot:not(.k{number}) {{ opacity: .08 }}"
    for number in range(14)
)
_CURVES = "\n".join(
    f".s{number} {{ --k: {_CLASS_COLOURS[number]} }} path.s{number} {{ stroke-dasharray: {dash} }}"
    for number, dash in enumerate(_DASHES)
)

STYLE = f"""\
:root {{ --good: #1a7f37; --bad: #c0392b; --panel: #8881 }}
@media (prefers-color-scheme: dark) {{ :root {{ --good: #5fd07f; --bad: #ff8a7a }} }}
body {{ max-width: 1100px; margin: 1.2rem auto; padding: 0 1rem; font-size: 15px; line-height: 1.5 }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.2rem; margin: 2rem 0 .6rem }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .4rem }}
section {{ border-top: 1px solid var(--line) }} footer p, .note, small {{ color: var(--soft) }}
a {{ color: var(--mark) }} .skip {{ position: absolute; left: -99rem }} .skip:focus {{ left: 1rem; top: .5rem }}
:focus-visible {{ outline: 2px solid var(--mark); outline-offset: 2px }}
.verdict {{ border-left: 4px solid var(--mark); padding: .4rem .8rem; background: var(--panel); font-weight: 600 }}
.wide {{ overflow-x: auto; margin: .6rem 0 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
caption {{ text-align: left; color: var(--soft); padding: .3rem 0 }}
th, td {{ padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line) }}
thead th {{ color: var(--soft); font-weight: 500 }} tbody th {{ font-weight: 500 }}
.num {{ text-align: right }} .measured {{ white-space: nowrap }} .measured svg {{ vertical-align: middle }}
.better b {{ color: var(--good) }} .worse b {{ color: var(--bad) }}
svg text {{ fill: var(--soft); font-size: 11px; font-family: inherit }} svg path {{ fill: none }}
.track {{ stroke: var(--line); fill: var(--panel) }} .range {{ stroke: var(--mark); stroke-width: 3 }}
.zero {{ stroke: var(--ink) }} .interval circle, .bar rect {{ fill: var(--mark) }} .bar .track {{ fill: var(--panel) }}
.grid {{ stroke: var(--line) }} .chance {{ stroke: var(--soft); stroke-dasharray: 3 4 }}
.line {{ stroke: var(--k); stroke-width: 2 }} .chart circle {{ fill: var(--k) }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1.2rem }}
.chart {{ margin: .6rem 0; max-width: 500px }} .chart > svg {{ width: 100%; height: auto }}
.chart figcaption {{ font-size: 14px; color: var(--ink); font-weight: 500 }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; margin: .2rem 0 }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .6rem 0 }}
dt {{ color: var(--soft) }} dd {{ margin: 0; overflow-wrap: anywhere }}
details {{ margin: .8rem 0 }} summary {{ cursor: pointer; color: var(--mark) }}
.strips, .hits {{ list-style: none; padding: 0; margin: 0 }}
.few {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)) }}
.strip {{ padding: .8rem 0; border-bottom: 1px solid var(--line) }}
.row {{ display: flex; gap: 1rem }} .hits {{ display: flex; flex-wrap: wrap; gap: .6rem; min-width: 0 }}
.row figure {{ margin: 0; width: 96px; flex: none }} .frame {{ position: relative; height: 96px; border-radius: 6px }}
.frame {{ display: flex; align-items: center; justify-content: center; background: var(--panel) }}
.frame img {{ max-width: 100%; max-height: 100%; border-radius: 4px }} .none {{ font-size: 11px; color: var(--soft) }}
.query .frame {{ outline: 2px solid var(--mark); outline-offset: 1px }}
.right .frame {{ outline: 2px solid var(--good) }} .wrong .frame {{ outline: 2px dashed var(--bad) }}
.mark {{ position: absolute; right: -4px; top: -6px; width: 18px; height: 18px; border-radius: 50%; color: #fff;
  font: bold 12px/18px system-ui; text-align: center; background: #1a7f37 }} .wrong .mark {{ background: #c0392b }}
figcaption {{ font-size: 12px; color: var(--soft); overflow: hidden; text-overflow: ellipsis }}
figcaption b {{ color: var(--ink) }} .why {{ margin: 0 }} .why img {{ max-width: 96px; max-height: 96px; margin: 2px }}
.matrix th, .matrix td {{ padding: .15rem .3rem; border: 0; font-size: 12px; white-space: nowrap }}
.matrix td {{ text-align: center; min-width: 1.6rem }} .matrix thead th {{ vertical-align: bottom }}
.matrix thead span {{ writing-mode: vertical-rl; rotate: 180deg; max-height: 9rem; overflow: hidden }}
.matrix tbody th {{ position: sticky; left: 0; background: var(--ground) }}
.own {{ background: color-mix(in srgb, var(--mark) calc(var(--v) * 55%), transparent) }}
.other {{ background: color-mix(in srgb, var(--bad) calc(var(--v) * 75%), transparent) }}
.plane {{ position: relative; max-width: 860px; margin: 14px 20px; border: 1px solid var(--line) }}
.dot {{ display: inline-block; width: 10px; height: 10px; padding: 0; border: 1px solid var(--ground);
  background: var(--k, #8a8a8a); border-radius: var(--round, 50%); --s: 64px }}
.plane .dot {{ position: absolute; translate: -50% 50%; cursor: pointer; transition: opacity .15s }}
.plane .dot.k {{ width: 8px; height: 8px }}
.plane .dot:hover, .plane .dot:focus {{ z-index: 3; --s: 96px; scale: 1.3 }}
.plane .dot::after {{ position: absolute; width: var(--s); height: var(--s); left: 10px; top: 10px; border-radius: 4px;
  background-position: calc(var(--c) * -1 * var(--s)) calc(var(--r) * -1 * var(--s));
  outline: 2px solid var(--k, #8a8a8a) }}
.plane .dot.w::after {{ left: auto; right: 10px }}
.plane .dot:hover::after, .plane .dot:focus::after {{ content: "" }}
.map:has(.pics :checked) .dot::after {{ content: ""; left: -14px; right: auto; top: -14px }}
.map:has(.pics :checked) .plane .dot:not(:hover):not(:focus) {{ --s: 34px }}
.map fieldset {{ border: 0; margin: 0; padding: 0 }} .map legend {{ color: var(--soft); padding: 0 }}
.map label {{ cursor: pointer }} output {{ color: var(--ink); display: block; min-height: 1.5em }}
.map:has(input[value=k]:checked) .plane .dot:not(.k) {{ opacity: .08 }}
{_CLASSES}
{_CURVES}
@media (prefers-color-scheme: dark) {{ .k0, .k7, .s0 {{ --k: #3d9be0 }} .k6, .k13 {{ --k: #b59a4a }} }}
@media (max-width: 560px) {{
  body {{ font-size: 14px }} .row {{ gap: .6rem }} .row figure {{ width: 60px }} .frame {{ height: 60px }}
  figcaption {{ font-size: 11px }} .interval, .bar {{ width: 76px }}
  .plane {{ margin: 10px 0 }} .plane .dot {{ width: 8px; height: 8px }} .plane .dot.k {{ width: 6px; height: 6px }}
  th, td {{ padding-right: .5rem }} .measured span small {{ display: block }} dl {{ grid-template-columns: 1fr }}
}}
@media print {{ details::details-content {{ content-visibility: visible }} .skip {{ display: none }} }}
@media (prefers-reduced-motion: reduce) {{ * {{ transition: none !important }} }}
"""

# Maps: the arrow keys go to the next mark in their direction, and what is pointed at is told. Everything else is CSS.
SCRIPT = """\
for (const map of document.querySelectorAll('.map')) {
  const dots = [...map.querySelectorAll('.plane .dot')], told = map.querySelector('output');
  const middle = dot => { const r = dot.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; };
  const say = event => { if (event.target.matches('.plane .dot')) told.textContent = event.target.ariaLabel; };
  map.addEventListener('pointerover', say);
  map.addEventListener('focusin', say);
  map.addEventListener('keydown', event => {
    const ways = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]};
    const way = ways[event.key], from = dots.indexOf(event.target);
    if (!way || from < 0) return;
    event.preventDefault();
    const [x, y] = middle(dots[from]);
    let best = null, least = Infinity;
    for (const dot of dots) {
      const [a, b] = middle(dot), ahead = (a - x) * way[0] + (b - y) * way[1];
      const aside = Math.abs((a - x) * way[1] + (b - y) * way[0]);
      if (ahead > .5 && ahead + 2 * aside < least) { least = ahead + 2 * aside; best = dot; }
    }
    if (best) { dots[from].tabIndex = -1; best.tabIndex = 0; best.focus(); }
  });
}
"""
