"""Compares AutoMixAlign with baselines over setups and seeds: trains, measures, and writes the results page."""
