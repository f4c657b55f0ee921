"""How a stage is watched while it trains: dashboards and sample clips."""
