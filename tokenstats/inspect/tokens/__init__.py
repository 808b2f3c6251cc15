"""One sequence: its tokens as text, its statistics, its decisions."""
