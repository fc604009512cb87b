"""Comparisons of finished runs: tables, statistics, sweeps, pictures of ranked lists, and the report page."""
