"""Signals over HTTP, by the Standard Webhooks convention."""
