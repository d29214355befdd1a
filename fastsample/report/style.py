"""The look of a page, light and dark, and the policy that allows it and nothing else."""

from __future__ import annotations

import base64
import hashlib

# Eight colours told apart with any colour vision, 3:1 at least against their ground.
LIGHT = ("#0072B2", "#C04A00", "#00785A", "#A8457E", "#8A6200", "#2C7FB0", "#000000", "#6B6B6B")
DARK = ("#56B4E9", "#FF9052", "#35C79B", "#E59CC6", "#EFBC45", "#9AD4F5", "#FFFFFF", "#ABABAB")


def _variables(colours: tuple[str, ...], **others: str) -> str:
    named = {f"c{k}": colour for k, colour in enumerate(colours)} | others
    return "".join(f"--{name}:{colour};" for name, colour in named.items())


_light = _variables(LIGHT, ground="#FFFFFF", ink="#1B1B1B", soft="#565656", rule="#D9D9D9")
_dark = _variables(DARK, ground="#16181B", ink="#E8E8E8", soft="#ABB0B6", rule="#3A3E44")
_colours = "".join(f".c{k}{{color:var(--c{k})}}" for k in range(len(LIGHT)))

STYLE = f"""
:root{{color-scheme:light dark;{_light}}}
@media(prefers-color-scheme:dark){{:root{{{_dark}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:1rem;max-width:60rem;background:var(--ground);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}}
h1{{font-size:1.5rem;line-height:1.25;margin:.5rem 0 1rem}}
h2{{font-size:1.2rem;margin:2.5rem 0 .5rem}}
h3{{font-size:1rem;margin:1.5rem 0 .25rem}}
p{{margin:.5rem 0;max-width:45rem}}
a{{color:var(--c0)}}
nav{{margin-left:-.3rem}}
nav a{{display:inline-block;padding:.15rem .3rem}}
:focus-visible{{outline:2px solid var(--c0);outline-offset:2px}}
summary{{cursor:pointer;padding:.25rem 0}}
summary h2{{display:inline;margin:0}}
details.budget{{border-top:1px solid var(--rule);margin-top:1rem;padding-top:.5rem}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}}
th,td{{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--rule);
vertical-align:top;white-space:nowrap}}
th{{font-weight:600}}
th:first-child{{text-align:left;padding-left:0}}
.wide th:first-child{{position:sticky;left:0;background:var(--ground);max-width:10rem;
overflow:hidden;text-overflow:ellipsis}}
td small{{display:block;color:var(--soft)}}
td.best{{font-weight:700}}
td.best small{{font-weight:400}}
.note{{width:100%;table-layout:fixed}}
.note th{{width:40%;font-weight:400;color:var(--soft)}}
.note th,.note td{{text-align:left;white-space:normal;overflow-wrap:anywhere}}
pre{{white-space:pre-wrap;border:1px solid var(--rule);padding:.6rem;
font-size:.875rem;margin:.5rem 0}}
figure{{margin:1rem 0;overflow:hidden}}
figcaption,.axis{{font-size:.8125rem;color:var(--soft);margin:.25rem 0;max-width:none}}
.axis.x{{text-align:right}}
.legend{{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1.25rem;padding:0;margin:.25rem 0;
font-size:.875rem}}
.row{{display:flex;gap:4px;align-items:start}}
img{{flex:1;min-width:0;max-width:6rem;height:auto;image-rendering:pixelated}}
svg{{overflow:visible}}
svg svg{{width:100%;height:100%}}
.plot{{display:block;width:100%;height:19rem;padding:.25rem .25rem 1.75rem 2.5rem}}
.strips{{display:block;width:100%;padding:0 6px 34px}}
.lines{{display:block;width:100%;height:6rem;max-width:45rem}}
.key{{width:12px;height:12px;margin-right:.4rem}}
.symbols{{position:absolute;width:0;height:0}}
use{{fill:currentColor}}
text{{fill:var(--ink);font-size:12px;paint-order:stroke;stroke:var(--ground);stroke-width:4px}}
.tick{{fill:var(--soft);text-anchor:middle}}
.tick.y{{text-anchor:end}}
.grid{{stroke:var(--rule)}}
.line{{fill:none;stroke:currentColor;stroke-width:2;vector-effect:non-scaling-stroke}}
.band{{fill:currentColor;opacity:.14}}
{_colours}
"""

_digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'sha256-{_digest}'; base-uri 'none'; "
    "form-action 'none'"
)
