"""Who wins, by how much, and against what: AutoMixAlign and its baselines over setups and seeds."""
