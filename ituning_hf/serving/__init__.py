"""Captioners behind an HTTP server and a web app."""
