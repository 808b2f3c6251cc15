"""Entropy against KL, cell by cell: one that is pointed at says what it holds, and one that is pressed lists its tokens."""

from bin_list import list_bin
from components.token_view import view_component
from loading import load_joint

from tokenstats.inspect.preview import Outcome, Preview
from tokenstats.inspect.rows.joint import bins_of_cell, joint_payload


def joint_view(preview: Preview, outcome: Outcome) -> None:
    """Draw the preview's targets under a rule; there is entropy and KL."""
    data = {"slot": "joint", "joint": joint_payload(load_joint(preview, outcome))}
    said = view_component()(key="tokens-joint", data=data, on_cell_change=lambda: None)
    if said.get("cell"):
        list_bin(preview, outcome, bins_of_cell(*said["cell"]), "cell_hits")
