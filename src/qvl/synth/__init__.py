"""Pictures, pages and clips drawn from a seed, each with its known answer. Judges nothing."""
