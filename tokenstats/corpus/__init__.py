"""Dataset rows become tokens: ids, targets and roles. Nothing is tokenized again after this stage."""
