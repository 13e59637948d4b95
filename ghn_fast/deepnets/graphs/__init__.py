"""Architecture graphs of configurations, without building their networks."""
