"""How things look: in a terminal, as HTML, as pictures."""
