"""Everything becomes visible: tokens, audits, reports, previews of rules. Loads neither torch nor transformers."""
