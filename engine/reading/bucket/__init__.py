"""Buckets of object stores: `s3://`, `gs://` and `az://`."""
