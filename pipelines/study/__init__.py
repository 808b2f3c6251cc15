"""Does masking help? Regimes, arms, runs, measures and statistics of docs/STUDY.md."""
