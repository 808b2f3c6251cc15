"""The rule language: its words, its grammar, its types, its canonical spelling. Knows errors and the schema only."""
