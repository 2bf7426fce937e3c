"""Impressions: adapters, import of users' own logs, batches."""
