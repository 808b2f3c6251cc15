"""Rules meet numbers: targets read part by part, expressions evaluated, thresholds worked out, decisions made."""
