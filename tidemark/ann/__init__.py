"""Approximate nearest neighbours, by FAISS: the only package that imports it.

Knows float32 rows and row numbers; nothing of ids, files' names, manifests or Kafka.
"""
