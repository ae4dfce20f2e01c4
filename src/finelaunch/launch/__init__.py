"""Where a recipe runs: launch profiles, and the plan that recipe and profile make together."""
