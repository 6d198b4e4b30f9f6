"""Writes Data Docs: pages of Great Expectations' own renderers that need nothing from a network.

Its site builder makes pages that load their style, and all that the first page lists, from other
hosts: opened without a network they are bare and the list is empty. So its sections are set here
into pages that carry their style with them.
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView
from jinja2 import Environment, FileSystemLoader, pass_context

from tasks import files
from tasks.data.expectations import Suite

if TYPE_CHECKING:
    from tasks.data.validation import Validation

INDEX = "index.html"
_PAGES = Path(__file__).with_name("docs_pages")


class _View(DefaultJinjaPageView):  # type: ignore[misc]
    """Escapes plain strings too: unexpected values come as they stand in the data."""

    @pass_context
    def render_content_block(self, context: Any, block: Any, *args: Any, **named: Any) -> Any:
        if isinstance(block, str):
            return html.escape(block)
        return super().render_content_block(context, block, *args, **named)


def write(found: "Validation", suites: Sequence[Suite], results: Sequence[Any], docs: Path) -> None:
    """Replace the folder `docs` by the pages of these results.

    Raises StoreError where the disk is full; the pages of before stay then.
    """
    # one view for all pages: it keeps its compiled templates
    view = _View(custom_views_directory=str(_PAGES))
    names = {suite.name: f"{suite.name.replace(' ', '-')}.html" for suite in suites}
    with files.staged(docs.parent, ".data-docs") as staging:
        made = staging / "made"
        made.mkdir()
        for suite, result in zip(suites, results, strict=True):
            (made / names[suite.name]).write_text(_page(view, suite, result), encoding="utf-8")
        index = Environment(loader=FileSystemLoader(_PAGES), autoescape=True)
        pages = [
            (suite.name, names[suite.name], result)
            for suite, result in zip(suites, results, strict=True)
        ]
        text = index.get_template("index.html").render(found=found, pages=pages)
        (made / INDEX).write_text(text, encoding="utf-8")
        if docs.exists():
            os.rename(docs, staging / "before")
        os.rename(made, docs)


def _page(view: Any, suite: Suite, result: Any) -> str:
    document = ValidationResultsPageRenderer().render(result)
    return str(view.render(document, template="suite_page.html", name=suite.name, result=result))
