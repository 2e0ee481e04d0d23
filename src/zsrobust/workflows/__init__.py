"""Workflows: what a command does when it is more than one noun."""
