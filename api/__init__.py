"""The search service: maps the newest checkpoint's segments, tails the topic itself, answers over HTTP."""
