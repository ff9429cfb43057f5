"""Run folders, recipes, pipelines and sweeps."""
