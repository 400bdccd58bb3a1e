"""Policies and judges behind an OpenAI-compatible server."""
