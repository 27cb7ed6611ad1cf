"""The family as dated data with a source on every figure. Does no arithmetic beyond reading."""
