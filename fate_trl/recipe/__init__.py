"""Recipes: their schema, read, overridden and checked without torch."""
