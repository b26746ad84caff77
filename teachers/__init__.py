"""Everything that can be asked for K action chunks per observation, and the networks behind it."""
