"""Helpers that several tests share: data sets, models, strategies and devices."""
