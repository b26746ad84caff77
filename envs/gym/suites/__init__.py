"""Programs and mappings for well-known suites, which run in the suite's own interpreter: Meta-World, Push-T."""
