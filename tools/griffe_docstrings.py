"""The API pages' docstrings in Markdown: an extension of griffe, which reads the package for
mkdocstrings without importing it.
"""

import griffe
from docstrings import markdown


class Docstrings(griffe.Extension):
    """Every docstring by `docstrings.markdown`."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
