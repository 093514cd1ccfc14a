"""The report as HTML: one file that asks nothing of the network, and whose scripts alone may run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from manifests.errors import XstreamerError
from pipelines.report import words
from pipelines.report.charts import Chart

Row = dict[str, Any]
EXTRA = 'pip install "xstreamer[review]"'


def needed() -> None:
    """Raises XstreamerError with the command that installs what a report needs, where it is missing."""
    for name in ("jinja2", "plotly"):
        try:
            __import__(name)
        except ImportError as error:
            raise XstreamerError(f"a report needs {name}, which is not installed; run: {EXTRA}") from error


def render(content: Mapping[str, Any], charts: Sequence[Chart], template: str = "report.html") -> bytes:
    """The page. content: what `template` shows; texts in it are escaped, whatever they hold."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("pipelines.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["length"] = words.length
    scripts = [_inline(text) for text in (get_plotlyjs(), _text("pipelines.report.templates", "report.js"))]
    style = _text("pipelines.web", "theme.css") + _text("pipelines.report.templates", "report.css")
    page = environment.get_template(template).render(
        **content,
        style=Markup(style),
        plotly=Markup(scripts[0]),
        script=Markup(scripts[1]),
        policy=policy(scripts),
        charts_json=Markup(as_json({chart.id: chart.spec() for chart in charts})),
    )
    return page.encode("utf-8", "replace")


def policy(scripts: Sequence[str]) -> str:
    """Content security policy: these scripts by their hash, pictures beside the page, no connection at all.

    Plotly writes styles of its own, hence inline styles.
    """
    hashed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashed}; style-src 'unsafe-inline'; img-src 'self' file: data:; "
        "base-uri 'none'; form-action 'none'"
    )


def as_json(content: Any) -> str:
    """JSON that ends no script element, whatever it holds."""
    text = json.dumps(content, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _inline(script: str) -> str:
    """The script as the page holds it. Raises XstreamerError for one that would end its element."""
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise XstreamerError(f"plotly's script cannot be put into a page; install another version: {EXTRA}")
    return text


def _text(package: str, name: str) -> str:
    place = resources.files(package.rsplit(".", 1)[0]) / package.rsplit(".", 1)[1] / name
    return place.read_text(encoding="utf-8")
