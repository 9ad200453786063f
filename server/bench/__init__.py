"""Figures of a running server under load from wrk: `kudos bench votes` and `kudos bench serve`. Nothing imports it."""
