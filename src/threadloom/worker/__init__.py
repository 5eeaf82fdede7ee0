"""Runs queued runs."""
