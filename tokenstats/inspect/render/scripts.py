"""The scripts of a page in one piece: modules that import each other become one, without a build step.

The modules in ``token_view`` are plain JavaScript that any editor can follow and check. A page takes one script, so their texts
are put one after the other in the order of their imports, and the import lines and the word ``export`` are left out.
"""

import re
from functools import cache
from importlib.resources import files

from markupsafe import Markup

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z_]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


@cache
def script(entry: str, package: str = "tokenstats.inspect.render.token_view") -> Markup:
    """A module and all that it imports, as the text of one module. Names are those of the modules: no two may declare the same.

    Args:
        entry: The module's file, such as ``component.js``.
        package: Where it and what it imports lie.
    """
    texts: dict[str, str] = {}

    def add(name: str) -> None:
        if name in texts:
            return
        text = (files(package) / name).read_text(encoding="utf-8")
        for imported in _IMPORT.findall(text):
            add(imported)
        texts[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add(entry)
    return Markup("\n").join(map(Markup, texts.values()))


@cache
def view_style() -> Markup:
    """The style sheet of the token view."""
    return Markup((files("tokenstats.inspect.render.token_view") / "view.css").read_text(encoding="utf-8"))
