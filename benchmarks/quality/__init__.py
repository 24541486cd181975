"""What the mixing methods and merges give: many seeds, tuned baselines, equal compute."""
