"""Put the tables of the committed results into docs/STUDY.md, between ``<!-- table: TITLE -->`` and ``<!-- end -->``.

python -m pipelines.study.document
"""

import re
from collections.abc import Mapping

from pipelines.study.__main__ import committed_tables
from pipelines.tinymath import ROOT

STUDY = ROOT / "docs" / "STUDY.md"
_PLACE = re.compile(r"<!-- table: (.+?) -->.*?<!-- end -->", re.DOTALL)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The text with every table as it is now."""

    def filled(place: re.Match[str]) -> str:
        return f"<!-- table: {place[1]} -->\n\n{tables.get(place[1], 'No runs yet.')}\n\n<!-- end -->"

    return _PLACE.sub(filled, text)


if __name__ == "__main__":
    STUDY.write_text(with_tables(STUDY.read_text(encoding="utf-8"), committed_tables()), encoding="utf-8")
