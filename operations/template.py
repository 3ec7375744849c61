"""Render the Jinja2 templates of ``templates/``. A name that a template uses and nobody gave is an error."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parents[1] / "templates"


@cache
def _environment() -> Environment:
    # Nothing here renders HTML: the targets are configuration files, and escaping would corrupt them.
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def render(template: str, **values: object) -> str:
    """
    Return the rendered text.

    + template: path below ``templates/``, e.g. ``nginx/site.conf.j2``
    + values: the template's names; a ``Secret`` must be unmasked in the template (``{{ key.unmask() }}``), and the
      text is then a secret too: wrap it before it goes into a ``fileset.File``

    Raises ``jinja2.UndefinedError`` for a name that was not given.
    """
    return _environment().get_template(template).render(**values)
